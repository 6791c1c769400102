"""The report: what stands in it, what it says, and that nothing in a trial can inject markup."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt

from conftest import Command
from smidgen.data.dataset import Dataset
from smidgen.errors import RunError
from smidgen.reports import charts, pictures
from smidgen.reports.collect import TrialRuns, collect
from smidgen.reports.document import Chart
from smidgen.reports.markdown import to_markdown
from smidgen.reports.page import to_html
from smidgen.reports.report import report
from smidgen.reports.write import reliability_bins, write
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import Silent
from smidgen.runs.record import Run
from smidgen.runs.run import run
from smidgen.trial import Augmentation, Conv, Goal, Network, Trial


@pytest.fixture(scope="module")
def runs(small_trial: Trial, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of one trial and one of another, made from it."""
    root = tmp_path_factory.mktemp("report-runs")
    for seed in (0, 1):
        run(small_trial, seed=seed, out=root / f"a{seed}", options=RunOptions(threads=1), progress=Silent())
    other = replace(
        small_trial, name="longer", note="three epochs, augmented", epochs=3, augmentation=Augmentation(rotation=10)
    )
    run(other, seed=0, out=root / "b0", options=RunOptions(threads=1), progress=Silent())
    return root


class Elements(HTMLParser):
    """The elements of a page, with their attributes and the text within."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def page(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("report") / "report.html"
    report([runs / "a0", runs / "a1", runs / "b0"], out)
    return out.read_text()


def test_everything_that_it_promises_is_there(page: str) -> None:
    text = " ".join(Elements(page).words)
    for words in (
        "Summary", "What changed from small", "augmentation.rotation: 0 -> 10", "epochs: 2 -> 3", "Analysis", "Curves",
        "Layers", "Receptive fields", "Epochs", "Misclassified images", "Confusion", "Reliability", "Training images",
        "First layer", "Environment", "weights_sha256, seed 1", "smidgen run", "--seed 1", "678", "epoch 3/3",
        "goal met by 2 of 2 runs", "true class → predicted class", "longer against small on the same 200 images", "7x7",
    ):  # fmt: skip
        assert words in text, words
    for part in ("curves-small", "curves-longer", "distribution"):
        assert part in page


def test_it_needs_nothing_else(page: str) -> None:
    elements = Elements(page)
    for tag, attributes in elements.found:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or ""
            assert value.startswith(("data:", "#")) or not value, (tag, value)
    assert not elements.all("script")
    assert "url(http" not in page


def test_it_is_accessible(page: str) -> None:
    elements = Elements(page)
    assert elements.all("html")[0]["lang"] == "en"
    assert len(elements.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(len(image["alt"] or "") > 10 for image in elements.all("img"))
    charts_shown = [svg for svg in elements.all("svg") if svg.get("role") == "img"]
    assert len(charts_shown) == len(elements.all("svg")) == 9
    assert all(len(svg["aria-label"] or "") > 30 for svg in charts_shown)
    assert len(elements.all("caption")) == len(elements.all("table"))
    assert all(cell.get("scope") in ("col", "row") for cell in elements.all("th"))
    identities = [attributes["id"] for _, attributes in elements.found if attributes.get("id")]
    assert len(identities) == len(set(identities))
    for link in elements.all("a"):
        assert (link["href"] or "")[1:] in identities


def test_the_figures_are_the_runs(page: str, runs: Path) -> None:
    results = [json.loads((runs / name / "result.json").read_text()) for name in ("a0", "a1")]
    accuracies = [r["test_accuracy_last"] for r in results]
    assert f"{np.mean(accuracies):.3f} ± {np.std(accuracies, ddof=1):.3f}" in page
    assert results[1]["weights_sha256"] in page
    lines = (runs / "b0" / "log.txt").read_text().splitlines()
    for line in (line for line in lines if line.startswith("epoch") and "train loss" in line):
        assert line in page


def test_the_misclassified_images_are_the_networks(runs: Path) -> None:
    group = collect([runs / "b0"]).trials[0]
    assert group.dataset is not None
    predictions, correct = group.predictions[0], group.correct[0]
    assert int(correct.sum()) == group.runs[0].history[-1].test_correct
    document = write(collect([runs / "b0"]))
    (sheet,) = [b for b in document.blocks if isinstance(b, Chart) and b.name.startswith("misclassified")]
    root = ET.fromstring(sheet.svg)
    pixels = [
        image.get("{http://www.w3.org/1999/xlink}href") for image in root.iter("{http://www.w3.org/2000/svg}image")
    ]
    captions = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    described = re.findall(r"image (\d+): (\d) classified as (\d), ([\d.]+) %", sheet.alt)
    assert len(described) == len(pixels) == min(48, int((~correct).sum()))
    for number, (index, label, guess, probability) in enumerate(described):
        assert int(group.labels[int(index)]) == int(label)
        assert int(predictions.classes[int(index)]) == int(guess) != int(label)
        assert captions[2 * number : 2 * number + 2] == [f"{label} → {guess}", f"{probability} %"]
        image = group.dataset.held_out.images[int(index)].numpy()
        assert pixels[number] == pictures.data_uri(pictures.small(image))
    sure = [float(probability) for *_, probability in described]
    assert sure == sorted(sure, reverse=True)


def test_a_contact_sheet_keeps_names_within_it_and_without_markup() -> None:
    image = np.zeros((3, 12, 24), np.uint8)
    svg = charts.contact_sheet([image] * 3, [("<b>&", "a very long name of a class", "99.9 %")] * 3)
    root = ET.fromstring(svg)
    _, _, width, height = map(float, (root.get("viewBox") or "").split())
    texts = list(root.iter("{http://www.w3.org/2000/svg}text"))
    assert [text.text for text in texts[:2]] == ["<b>& → a very long nam…", "99.9 %"]
    for element in (*texts, *root.iter("{http://www.w3.org/2000/svg}image")):
        assert 0 <= float(element.get("x") or -1) < width
        assert 0 <= float(element.get("y") or -1) < height


@pytest.mark.parametrize("suffix", [".html", ".md"])
def test_nothing_in_a_trial_injects_markup(small_trial: Trial, tmp_path: Path, suffix: str) -> None:
    note = "<script>alert(1)</script> **bold** ![x](http://a) | `code` </pre>"
    run(replace(small_trial, note=note, epochs=1), out=tmp_path / "r", progress=Silent())
    report([tmp_path / "r"], tmp_path / f"r{suffix}")
    text = (tmp_path / f"r{suffix}").read_text()
    rendered = text if suffix == ".html" else MarkdownIt("commonmark").enable("table").render(text)
    elements = Elements(rendered)
    assert not elements.all("script")
    assert not elements.all("strong")
    assert all(not (i["src"] or "").startswith("http") for i in elements.all("img"))
    assert note in " ".join(elements.words)


def test_markdown_shows_the_same_and_its_pictures_exist(runs: Path, tmp_path: Path) -> None:
    report([runs], tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text()
    rendered = Elements(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))
    words = " ".join(rendered.words)
    for part in ("Summary", "Receptive fields", "Misclassified images", "Analysis", "epoch 3/3", "conv1 (Conv2d)"):
        assert part in words, part
    assert len(rendered.all("table")) == 2 * 5 + 1
    images = rendered.all("img")
    assert len(images) == len(list((tmp_path / "r-images").iterdir())) == 15
    for image in images:
        assert (tmp_path / str(image["src"])).is_file()
    for svg in (tmp_path / "r-images").glob("*.svg"):
        assert "currentColor" not in svg.read_text()
        ET.parse(svg)


class TestBadInput:
    def test_what_cannot_be_read_is_left_out_and_named(self, runs: Path, tmp_path: Path) -> None:
        root = tmp_path / "all"
        shutil.copytree(runs, root)
        (root / "a1" / "result.json").unlink()
        (root / "b0" / "weights.safetensors").write_bytes(b"cut short")
        written = report([root, tmp_path / "nothing", root / "a0"], tmp_path / "r.html")
        assert [g.trial.name for g in written.trials] == ["small"]
        assert len(written.problems) == 4
        page = (tmp_path / "r.html").read_text()
        for words in ("unfinished", "damaged", "nothing is not a run directory", "counts once"):
            assert words in page, words

    def test_nothing_left_is_one_line(self, tmp_path: Path, smidgen: Command) -> None:
        (tmp_path / "r").mkdir()
        assert smidgen("report", tmp_path / "r").is_mistake("no finished runs to report on", "holds none")
        assert smidgen("report", tmp_path / "x", "-o", tmp_path / "r.html").is_mistake("x is not a run directory")
        assert not (tmp_path / "r.html").exists()

    def test_a_place_that_cannot_be_written_is_one_line(self, runs: Path, smidgen: Command) -> None:
        assert smidgen("report", runs / "a0", "-o", "/proc/x/r.html").is_mistake("/proc/x", "-o")
        assert smidgen("report", runs / "a0", "-o", "/dev/null/r.html").is_mistake("/dev/null")
        assert smidgen("report", runs / "a0", "-o", "r.pdf").is_mistake("must end in .html or .md")

    def test_without_its_data_a_run_is_reported_without_images(
        self, small_trial: Trial, small_folder: Path, tmp_path: Path
    ) -> None:
        folder = Path(shutil.copytree(small_folder, tmp_path / "data"))
        run(small_trial, data=folder, epochs=1, out=tmp_path / "r", progress=Silent())
        shutil.rmtree(folder)
        report([tmp_path / "r"], tmp_path / "r.html")
        text = (tmp_path / "r.html").read_text()
        assert "Without the data there are no images to show" in text
        assert "Receptive fields" in text

    @pytest.mark.parametrize("key", ["held_out", "weights_sha256", "engine", "seconds_training", "data_sha256"])
    def test_a_result_of_another_version_is_left_out(self, runs: Path, tmp_path: Path, key: str) -> None:
        root = Path(shutil.copytree(runs, tmp_path / "all"))
        result = json.loads((root / "a0" / "result.json").read_text())
        del result[key]
        (root / "a0" / "result.json").write_text(json.dumps(result))
        written = report([root], tmp_path / "r.html")
        assert [[run.seed for run in group.runs] for group in written.trials] == [[1], [0]]
        assert len(written.problems) == 1
        assert str(root / "a0") in written.problems[0]
        assert f"another version of smidgen: its result.json lacks {key}" in written.problems[0]

    def test_edited_history_is_refused(self, runs: Path, tmp_path: Path) -> None:
        edited = Path(shutil.copytree(runs / "a0", tmp_path / "edited"))
        (edited / "epochs.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
        with pytest.raises(RunError, match="damaged"):
            report([edited], tmp_path / "r.html")


def test_the_report_command(smidgen: Command, runs: Path, tmp_path: Path) -> None:
    done = smidgen("report", runs, "-o", tmp_path / "deep" / "r.html", "--json")
    assert done.status == 0
    assert done.json == {
        "path": str(tmp_path / "deep" / "r.html"),
        "trials": [{"name": "small", "seeds": [0, 1]}, {"name": "longer", "seeds": [0]}],
        "left_out": [],
    }
    assert (tmp_path / "deep" / "r.html").is_file()


def test_the_command_in_the_report_repeats_the_run(runs: Path, tmp_path: Path, smidgen: Command) -> None:
    report([runs / "b0"], tmp_path / "r.md")
    (line,) = re.findall(r"^smidgen run .*", (tmp_path / "r.md").read_text(), re.MULTILINE)
    done = smidgen(*line.split()[1:], "--out", tmp_path / "again", "--json")
    expected = json.loads((runs / "b0" / "result.json").read_text())
    assert done.json["weights_sha256"] == expected["weights_sha256"]


def test_reliability_bins_hold_every_image_once() -> None:
    sure = np.array([0.05, 0.55, 0.58, 0.95, 1.0, 0.999])
    right = np.array([False, True, False, True, True, True])
    confidence, share, count = reliability_bins(sure, right)
    assert count.tolist() == [1, 2, 3]
    assert share.tolist() == [0, 0.5, 1]
    assert confidence.tolist() == pytest.approx([0.05, 0.565, (0.95 + 1 + 0.999) / 3])


def test_the_contact_sheet_is_what_the_network_saw(mnist: Dataset, small_trial: Trial) -> None:
    """The first image of the sheet after augmentation is the first of epoch 1's first batch, as the loop makes it."""
    from io import BytesIO

    from PIL import Image

    from smidgen.data.augment import augment, to_float
    from smidgen.randomness import Purpose, Stream

    trial = replace(small_trial, augmentation=Augmentation(rotation=20, scale=0.1))
    _, after = pictures.contact_sheet(mnist, trial, seed=4)
    order = Stream(4, Purpose.ORDER, 1).permutation(60_000)[:50]
    batch = augment(to_float(mnist.train.images[order]), trial.augmentation, Stream(4, Purpose.AUGMENTATION, 1, 0))
    sheet = np.asarray(Image.open(BytesIO(after)))
    assert np.array_equal(sheet[:28, :28], (batch[0, 0] * 255).round().byte().numpy())


def test_charts_take_the_pages_colour_and_repeat_to_the_byte(runs: Path) -> None:
    groups = collect([runs]).trials
    svg = charts.curves(groups[0])
    assert svg == charts.curves(groups[0])
    assert "currentColor" in svg
    assert "#010203" not in svg
    root = ET.fromstring(svg)
    assert root.get("viewBox")
    assert "target 10 %" in "".join(root.itertext())
    matrix = np.eye(3) * 5
    matrix[0, 1] = 2.5
    text = "".join(ET.fromstring(charts.confusion(matrix, ["cat", "a $ sign", "x"], "test", "x")).itertext())
    assert "2.5" in text
    assert "a $ sign" in text


def test_a_run_without_a_convolution_has_no_filters() -> None:
    assert pictures.filters(torch.nn.Linear(2, 2)) is None


def test_a_goal_evaluated_on_validation_is_open(small_trial: Trial, tmp_path: Path) -> None:
    run(small_trial, settings=["data.evaluate=validation"], out=tmp_path / "r", progress=Silent())
    document = write(collect([tmp_path / "r"]))
    assert "goal open, evaluated on the validation split" in document.verdict
    assert "validation accuracy" in to_html(document)
    assert "goal met" not in to_markdown(document, "x")[0]


def test_two_recipes_of_one_name_are_told_apart(small_run: Run, small_trial: Trial, tmp_path: Path) -> None:
    run(small_trial, settings=["optimizer.lr=0.02"], out=tmp_path / "b", progress=Silent())
    written = report([small_run, tmp_path / "b"], tmp_path / "r.md")
    labels = [group.label for group in written.trials]
    assert len(set(labels)) == 2
    assert all(re.fullmatch("small-[0-9a-f]{6}", label) for label in labels)
    text = (tmp_path / "r.md").read_text()
    for label in labels:
        assert f"## {label}" in text
        assert f"r-images/curves-{label}.svg" in text
    report([small_run, tmp_path / "b"], tmp_path / "r.html")
    identities = [a["id"] for _, a in Elements((tmp_path / "r.html").read_text()).found if a.get("id")]
    assert len(identities) == len(set(identities))


def test_runs_can_be_given_as_values(small_run: Run, tmp_path: Path) -> None:
    written = report([small_run], tmp_path / "r.html")
    assert isinstance(written.trials[0], TrialRuns)
    assert written.trials[0].trial.goal == Goal(accuracy=10, parameters=1000, epochs=3)


def test_three_trials_are_drawn_as_accuracy_against_parameters(
    small_run: Run, small_trial: Trial, tmp_path: Path
) -> None:
    others = []
    assert isinstance(small_trial.network, Network)
    for name, width in (("wider", 8), ("narrower", 3)):
        network = replace(small_trial.network, blocks=(Conv(width, stride=2), *small_trial.network.blocks[1:]))
        others.append(
            run(replace(small_trial, name=name, network=network), seed=0, out=tmp_path / name, progress=Silent())
        )
    report([small_run, *others], tmp_path / "three.html")
    page = (tmp_path / "three.html").read_text()
    alt = next(a for a in re.findall(r'aria-label="([^"]*)"', page) if "against parameters" in a)
    for made in (small_run, *others):
        assert f"{made.trial.name}: {made.result.parameters:,} parameters, {made.accuracy:.3f} %" in alt
    report([small_run, others[0]], tmp_path / "two.html")
    assert "against parameters" not in (tmp_path / "two.html").read_text()


def test_the_line_of_the_front_joins_what_no_other_beats() -> None:
    points = [charts.Point(100, 98.0, "a"), charts.Point(200, 97.0, "b"), charts.Point(200, 99.0, "c", marked=True)]
    points += [charts.Point(300, 99.0, "d"), charts.Point(400, 99.5, "e")]
    svg = charts.front(points, "accuracy", "test")
    line = max(re.findall(r'<path d="([^"]*)" clip-path', svg), key=len)
    assert len(re.findall("[ML]", line)) == 5  # three points in steps
    for label in "abcde":
        assert f">{label}</text>" in svg
