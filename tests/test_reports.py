"""The report: what stands in it, what it says, and that nothing in a trial can inject markup."""

from __future__ import annotations

import base64
import json
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from markdown_it import MarkdownIt
from PIL import Image

from conftest import Command
from smidgen.data.dataset import Dataset
from smidgen.errors import RunError
from smidgen.reports import charts, pictures
from smidgen.reports.answers import answers
from smidgen.reports.class_maps import class_maps
from smidgen.reports.collect import TrialRuns, collect
from smidgen.reports.document import Chart, Document, Paragraph, Sheet, Table
from smidgen.reports.markdown import to_markdown
from smidgen.reports.page import to_html
from smidgen.reports.report import report
from smidgen.reports.sheet import MapOverlay, SheetImage, contact_sheet, sheet_svg
from smidgen.reports.write import write
from smidgen.runs.options import RunOptions
from smidgen.runs.predictions import Predictions
from smidgen.runs.progress import Silent
from smidgen.runs.record import Run
from smidgen.runs.run import run
from smidgen.trial import Augmentation, Conv, Goal, Linear, Network, Trial

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"


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
        "class activation maps", "Misclassified test images over 2 runs", "Expected calibration error",
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
    tiles = [svg for svg in charts_shown if (svg["aria-label"] or "").startswith("image ")]
    maps = [svg for svg in elements.all("svg") if svg.get("viewbox") == "0 0 28 28"]  # two within each tile
    assert len(charts_shown) - len(tiles) == 7
    assert len(maps) == 2 * len(tiles) == len(elements.all("svg")) - len(charts_shown)
    assert len(tiles) > 60
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


def tile_root(sheet: Sheet, index: int) -> ET.Element:
    return ET.fromstring(f"{charts.opening(*sheet.size)}{sheet.tiles[index].svg}</svg>")


def pixels_of(uri: str | None) -> npt.NDArray[np.uint8]:
    assert uri is not None
    return np.asarray(Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_the_misclassified_images_are_the_networks(runs: Path) -> None:
    group = collect([runs / "b0"]).trials[0]
    assert group.dataset is not None
    predictions, correct = group.predictions[0], group.correct[0]
    assert int(correct.sum()) == group.runs[0].history[-1].test_correct
    (sheet,) = [block for block in answers(group) if isinstance(block, Sheet)]
    assert len(sheet.tiles) == min(48, int((~correct).sum()))
    probabilities = []
    for number, tile in enumerate(sheet.tiles):
        found = re.search(r"image (\d+): (\d) classified as (\d), ([\d.]+) %; the map for \3 is .* for \2 at", tile.alt)
        assert found is not None
        index, label, guess = (int(found[i]) for i in (1, 2, 3))
        probabilities.append(float(found[4]))
        assert int(group.labels[index]) == label
        assert int(predictions.classes[index]) == guess != label
        root = tile_root(sheet, number)
        assert [text.text for text in root.iter(f"{SVG}text")][-1] == f"{label} → {guess}, {found[4]} %"
        shown, *maps = [image.get(HREF) for image in root.iter(f"{SVG}image")]
        image = group.dataset.held_out.images[index]
        assert shown == pictures.data_uri(pictures.small(image.numpy()))
        cells = class_maps(group.runs[0].trained, image[None], torch.tensor([[guess, label]])).maps[0].numpy()
        for uri, one in zip(maps, cells, strict=True):
            pixels = pixels_of(uri)
            assert np.array_equal(pixels[..., 0] > pixels[..., 2], one > 0)  # orange, not blue
            opacities = pixels[..., 3].ravel()[np.argsort(np.abs(one).ravel())].astype(int)
            assert (np.diff(opacities) >= 0).all()  # the larger, the more opaque
        assert max(pixels_of(uri)[..., 3].max() for uri in maps) > 200
    assert probabilities == sorted(probabilities, reverse=True)


def test_a_network_without_class_activation_maps_says_why(small_trial: Trial, tmp_path: Path) -> None:
    network = Network(blocks=(Conv(4, stride=2), Conv(6, stride=2), Linear()))
    trial = replace(small_trial, network=network, goal=Goal(accuracy=10, parameters=9000, epochs=3))
    run(trial, epochs=1, out=tmp_path / "r", progress=Silent())
    page = Elements(to_html(write(collect([tmp_path / "r"]))))
    assert "No class activation maps: the network's end is not global average pooling" in " ".join(page.words)
    assert not page.all("use") or not any("misclassified" in (use.get("xlink:href") or "") for use in page.all("use"))
    assert len(page.all("image")) > 10


def answering(run: Run, dataset: Dataset, seed: int, wrong: set[int]) -> Run:
    """The run with other answers, for another data set: all right but some."""
    labels = dataset.held_out.labels.numpy()
    classes, probabilities = labels.copy(), np.full(len(labels), 0.9985, np.float32)
    chosen = sorted(wrong)
    classes[chosen], probabilities[chosen] = (labels[chosen] + 1) % 10, 0.6
    last = replace(run.history[-1], test_correct=len(labels) - len(wrong), test_total=len(labels))
    predictions = Predictions(classes, probabilities)
    return replace(run, seed=seed, history=(*run.history[:-1], last), predictions=predictions)


def paragraphs(group: TrialRuns) -> str:
    return " ".join(block.text for block in answers(group) if isinstance(block, Paragraph))


def test_doubtful_labels_are_marked_and_counted(small_run: Run, mnist: Dataset) -> None:
    wrong = [{947, 1, 2}, {947, 1, 3}, {947, 4}]
    runs = [answering(small_run, mnist, seed, each) for seed, each in enumerate(wrong)]
    group = TrialRuns(small_run.trial, runs, mnist)
    text = "1 of the 3 errors below are on such images, and 3 of all 8 errors of 3 runs"
    assert text in paragraphs(group)
    blocks = answers(group)
    (sheet,) = [block for block in blocks if isinstance(block, Sheet)]
    marked = [tile for tile in sheet.tiles if "label in doubt" in tile.alt]
    assert [tile.alt.partition(":")[0] for tile in marked] == ["image 947"]
    assert [tile for tile in sheet.tiles if ">label in doubt<" in tile.svg] == marked
    (table,) = [block for block in blocks if isinstance(block, Table) and block.columns[0] == "misclassified in"]
    assert table.rows == [["any run", "5", "1"], ["more than half of the runs", "2", "1"], ["all runs", "1", "1"]]

    # The same images with other labels are not MNIST's test set.
    other = TrialRuns(group.trial, runs, replace(mnist, sha256={**mnist.sha256, "test_labels": "0" * 64}))
    page = to_html(Document("x", "x", answers(other)))
    assert "in doubt" not in page
    assert "any run" in page


def test_a_reliability_diagram_of_few_errors(small_run: Run, mnist: Dataset) -> None:
    wrong = [set(range(30)), set(range(10))]
    runs = [answering(small_run, mnist, seed, each) for seed, each in enumerate(wrong)]
    group = TrialRuns(small_run.trial, runs, mnist)
    blocks = answers(group)
    (table,) = [block for block in blocks if isinstance(block, Table) and block.caption == "Reliability"]
    assert table.rows == [["50–80", "20.0", "60.000", "0.000"], ["99.8–99.9", "9,980.0", "99.850", "100.000"]]
    # 60 points for 30 or 10 of the 10,000 images, 0.15 for the others: 0.3296 and 0.2099.
    assert "Expected calibration error: 0.270 ± 0.085 (mean ± s.d. of 2 runs) points" in paragraphs(group)
    assert "mean confidence is 99.770 %, the accuracy 99.800 %: underconfident by 0.030 points" in paragraphs(group)
    (chart,) = [block for block in blocks if isinstance(block, Chart) and block.name.startswith("reliability")]
    shown = "".join(ET.fromstring(chart.svg).itertext())
    for words in ("99.8–99.9", "9,980", "expected: 1 - mean confidence", "none observed"):
        assert words in shown, words


@pytest.mark.parametrize("overlays", [0, 2])
def test_a_contact_sheet_keeps_names_within_it_and_without_markup(overlays: int) -> None:
    lines = charts.short("<b>&"), charts.short("a very long name of a class")
    overlay = MapOverlay(np.ones((2, 4)), (6, 3, 12, 6), "prediction")
    image = SheetImage(np.zeros((3, 12, 24), np.uint8), lines, 'all of "it" & <b>', "in doubt", [overlay] * overlays)
    sheet = contact_sheet("sheet", [image] * 5, "a caption")
    width, height = sheet.size
    root = tile_root(sheet, 0)
    texts = list(root.iter(f"{SVG}text"))
    expected = ["in doubt", "prediction", "prediction", "<b>&, a very long nam…"] if overlays else [*lines, "in doubt"]
    assert [text.text for text in texts] == expected
    for text in texts:
        assert 0 < float(text.get("x") or -1) < width
        assert 0 < float(text.get("y") or -1) < height
    for box in (*root.iter(f"{SVG}svg"), root.find(f".//{SVG}image")):
        assert box is not None
        assert 0 <= float(box.get("x") or 0) <= width - float(box.get("width") or 0)
    # The copies of the image, which are moved by so much, lie under the maps.
    maps = [float(box.get("x") or -1) for box in root.iter(f"{SVG}svg") if box is not root]
    first = root.find(f".//{SVG}image")
    assert first is not None
    assert maps == [float(first.get("x") or -1) + float(use.get("x") or -1) for use in root.iter(f"{SVG}use")]
    assert len(maps) == overlays
    whole = ET.fromstring(sheet_svg(sheet))
    assert len(list(whole.iter(f"{SVG}text"))) == 5 * len(expected)
    page = Elements(to_html(Document("x", "x", [sheet])))
    assert [svg["aria-label"] for svg in page.all("svg") if svg.get("role")] == ['all of "it" & <b>'] * 5
    assert not page.all("b")


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
    assert len(rendered.all("table")) == 2 * 5 + 2  # and one over the two runs of a trial
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
        assert smidgen("report", tmp_path / "r").is_mistake("no finished runs", "holds none")
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


def test_the_contact_sheet_is_what_the_network_saw(mnist: Dataset, small_trial: Trial) -> None:
    """The first image of the sheet after augmentation is the first of epoch 1's first batch, as the loop makes it."""
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


@pytest.mark.parametrize(("runs", "thin"), [(1, 0), (2, 2), (8, 8), (9, 0)])
def test_curves_show_the_spread_over_runs_and_few_runs_each(small_run: Run, runs: int, thin: int) -> None:
    rng = np.random.default_rng(runs)
    losses = rng.uniform(0.5, 2, (runs, len(small_run.history)))
    made = [
        replace(
            small_run,
            seed=seed,
            history=tuple(
                replace(record, test_loss=float(loss))
                for record, loss in zip(small_run.history, losses[seed], strict=True)
            ),
        )
        for seed in range(runs)
    ]
    svg = charts.curves(TrialRuns(small_run.trial, made))
    panel = re.findall(rf'<path d="([^"]*)"[^>]*style="[^"]*stroke: {charts.HELD_OUT}; ([^"]*)"', svg)
    lines = [(heights(path), "0.45" in style) for path, style in panel]
    assert sum(faint for _, faint in lines) == 2 * thin  # in the panels of loss and accuracy
    band_style = f"fill: {charts.HELD_OUT}; fill-opacity: 0.18"
    bands = re.findall(rf'<use xlink:href="#([^"]*)" x="0" y="([\d.]+)" style="{band_style}', svg)
    assert len(bands) == (2 if runs > 1 else 0)
    if runs > 1:
        name, moved = bands[0]
        (path,) = re.findall(rf'<path id="{name}" d="([^"]*)"', svg)
        band = np.array(heights(path)) + float(moved)
        # Heights are a linear function of the loss, which the mean's are known of.
        to_loss = np.poly1d(np.polyfit(next(line for line, faint in lines if not faint), losses.mean(0), 1))
        assert sorted(to_loss([band.min(), band.max()])) == pytest.approx([losses.min(), losses.max()], abs=0.02)


def heights(path: str) -> list[float]:
    """The vertical coordinates of a path of straight lines."""
    return [float(y) for _, y in re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path)]
