#include "geometry.h"

#include <map>
#include <tuple>

namespace smidgen {

namespace {

using TapLists = std::map<std::vector<std::pair<int, int>>, int>;

// Adds a place to a gather, merged with the preceding places if it continues them.
void add_place(Gather& gather, TapLists& known, int output, int base, std::vector<Tap> taps, bool new_row) {
    std::vector<std::pair<int, int>> key;
    for (Tap& tap : taps) {
        tap.input -= base;
        key.emplace_back(tap.input, tap.position);
    }
    auto [found, fresh] = known.emplace(std::move(key), static_cast<int>(gather.taps.size()));
    if (fresh) gather.taps.push_back(std::move(taps));
    const int list = found->second;
    if (!new_row && !gather.places.empty()) {
        Places& last = gather.places.back();
        const int step = base - (last.input + (last.count - 1) * last.step);
        if (last.taps == list && last.output + last.count == output && (last.count == 1 || step == last.step)) {
            last.step = step;
            ++last.count;
            return;
        }
    }
    gather.places.push_back({output, base, 0, 1, list});
}

// The outputs along one axis whose input for a kernel position lies within the image.
std::pair<int, int> valid_outputs(int position, int outputs, int inputs, int stride, int padding, int dilation) {
    int first = 0, last = outputs;
    while (first < outputs && first * stride - padding + position * dilation < 0) ++first;
    while (last > first && (last - 1) * stride - padding + position * dilation >= inputs) --last;
    return {first, last};
}

}  // namespace

void ConvGeometry::prepare() {
    forward = Gather{};
    backward = Gather{};
    windows.clear();
    forward.groups = backward.groups = groups;
    forward.inputs = backward.outputs = input.channels / groups;
    forward.outputs = backward.inputs = output.channels / groups;
    forward.positions = backward.positions = positions();
    forward.input_plane = backward.output_plane = input.plane();
    forward.output_plane = backward.input_plane = output.plane();

    TapLists known;
    for (int y = 0; y < output.height; ++y)
        for (int x = 0; x < output.width; ++x) {
            const int top = y * stride_height - padding_height, left = x * stride_width - padding_width;
            std::vector<Tap> taps;
            for (int ky = 0; ky < kernel_height; ++ky)
                for (int kx = 0; kx < kernel_width; ++kx) {
                    const int iy = top + ky * dilation_height, ix = left + kx * dilation_width;
                    if (iy >= 0 && iy < input.height && ix >= 0 && ix < input.width)
                        taps.push_back({iy * input.width + ix, ky * kernel_width + kx});
                }
            add_place(forward, known, y * output.width + x, top * input.width + left, std::move(taps), x == 0);
        }

    known.clear();
    for (int y = 0; y < input.height; ++y)
        for (int x = 0; x < input.width; ++x) {
            std::vector<Tap> taps;
            for (int ky = 0; ky < kernel_height; ++ky)
                for (int kx = 0; kx < kernel_width; ++kx) {
                    const int sy = y + padding_height - ky * dilation_height;
                    const int sx = x + padding_width - kx * dilation_width;
                    if (sy < 0 || sx < 0 || sy % stride_height || sx % stride_width) continue;
                    const int oy = sy / stride_height, ox = sx / stride_width;
                    if (oy < output.height && ox < output.width)
                        taps.push_back({oy * output.width + ox, ky * kernel_width + kx});
                }
            const int base = (y / stride_height) * output.width + x / stride_width;
            add_place(backward, known, y * input.width + x, base, std::move(taps), x == 0);
        }

    std::map<std::tuple<int, int, int, int>, int> by_range;
    for (int ky = 0; ky < kernel_height; ++ky)
        for (int kx = 0; kx < kernel_width; ++kx) {
            const auto [top, bottom] =
                valid_outputs(ky, output.height, input.height, stride_height, padding_height, dilation_height);
            const auto [left, right] =
                valid_outputs(kx, output.width, input.width, stride_width, padding_width, dilation_width);
            const bool any = top < bottom && left < right;
            // Positions that never meet the image have no outputs, and a gradient of 0.
            const auto key = any ? std::make_tuple(top, bottom, left, right) : std::make_tuple(0, 0, 0, 0);
            auto [found, fresh] = by_range.emplace(key, static_cast<int>(windows.size()));
            if (fresh)
                windows.push_back({any ? bottom - top : 0, any ? right - left : 0,
                                   any ? top * output.width + left : 0, {}});
            const int iy = top * stride_height - padding_height + ky * dilation_height;
            const int ix = left * stride_width - padding_width + kx * dilation_width;
            windows[found->second].taps.push_back({any ? iy * input.width + ix : 0, ky * kernel_width + kx});
        }
}

void SeparableGeometry::prepare() {
    pixel.input = {input.channels, 1, 1};
    pixel.output = {output.channels, 1, 1};
    pixel.prepare();
}

}  // namespace smidgen
