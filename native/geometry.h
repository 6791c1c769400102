// Instructions for the kernels, computed once per network and independent of the instruction level.
//
// Values lie in blocks of 16 images: [block][channel][row][column][16]. A "pixel" below is such a
// vector of 16 floats; offsets count pixels unless a name says floats.
#pragma once

#include <cstdint>
#include <vector>

namespace smidgen {

// Images of a block.
constexpr int BLOCK = 16;

// One of so many parts of a block's work, which threads share where blocks cannot keep them all busy. Cutting must not
// change results: a part computes some of the results, each as it would be without the cut.
struct Part {
    int index = 0, count = 1;
    // The part's share of `total`: rows, channels, tiles.
    int first(int total) const { return static_cast<int>(static_cast<int64_t>(index) * total / count); }
    int end(int total) const { return static_cast<int>(static_cast<int64_t>(index + 1) * total / count); }
    bool none_of(int total) const { return first(total) == end(total); }
};

struct Shape {
    int channels = 0, height = 0, width = 0;
    int plane() const { return height * width; }
    int pixels() const { return channels * plane(); }
};

// One product of a convolution at one place: which input pixel (from the place's base), which
// position of the kernel.
struct Tap {
    int32_t input;
    int32_t position;
};

// Neighbouring places with the same taps, of one row.
struct Places {
    int32_t output;  // first output pixel
    int32_t input;   // base of its taps; grows by `step` a place
    int32_t step;
    int32_t count;
    int32_t taps;    // index into Gather::taps
};

// A convolution seen from its results: each place of the output gathers some inputs. Borders,
// strides and dilation are only other lists of taps, and the gradient by the input is one more
// gather.
struct Gather {
    int groups = 1;
    int inputs = 0;   // channels of a group
    int outputs = 0;
    int positions = 0;  // of the kernel
    int input_plane = 0, output_plane = 0;
    std::vector<Places> places;
    std::vector<std::vector<Tap>> taps;
};

// Positions of the kernel whose inputs lie within the image for the same outputs.
struct Window {
    int32_t rows, columns;     // how many outputs
    int32_t output;            // first of them
    std::vector<Tap> taps;     // their inputs for that first output
};

struct ConvGeometry {
    Shape input, output;
    int kernel_height = 1, kernel_width = 1, stride_height = 1, stride_width = 1;
    int padding_height = 0, padding_width = 0, dilation_height = 1, dilation_width = 1;
    int groups = 1;

    // Worked out by `prepare`.
    Gather forward, backward;
    std::vector<Window> windows;

    int positions() const { return kernel_height * kernel_width; }
    int weights() const { return output.channels * (input.channels / groups) * positions(); }
    void prepare();
};

// A separable convolution: a depthwise one, a 1x1 one, or the second after the first.
struct SeparableGeometry {
    Shape input, output;
    // Of the depthwise part, square; kernel 0: there is none. Padding is less than the kernel.
    int kernel = 0, stride = 1, padding_height = 0, padding_width = 0;
    bool pointwise = true;
    // Rows of the output that are worked on together, so that what belongs to them fits into a cache: of no influence
    // on results. Set by the kernels.
    int forward_rows = 1, backward_rows = 1;

    ConvGeometry pixel;  // the 1x1 part at one pixel, which is how its weights are packed; worked out by `prepare`

    int depthwise_weights() const { return input.channels * kernel * kernel; }
    int pointwise_weights() const { return pointwise ? input.channels * output.channels : 0; }
    void prepare();
};

// Sides and strides of the depthwise kernels that there are.
constexpr int DEPTHWISE_KERNELS[] = {3, 5}, DEPTHWISE_STRIDES[] = {1, 2};

enum class PoolKind { None, Max, Average };

struct PoolGeometry {
    Shape input, output;
    int kernel_height = 1, kernel_width = 1, stride_height = 1, stride_width = 1;
    int padding_height = 0, padding_width = 0;
    bool count_padding = true;  // average pooling: divide by the whole window, padding included
};

}  // namespace smidgen
