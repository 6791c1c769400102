// The kernels of one instruction level, as a table of functions. Every one works on one block of
// 16 images unless it says otherwise; pointers to values are 64-byte aligned.
#pragma once

#include <cstdint>

#include "activations.h"
#include "geometry.h"

namespace smidgen {

// What happens to a convolution's sums before they are stored: y = after(relu(before(sum))).
// Each affine map has a scale and a shift an output channel; null leaves it out.
struct Epilogue {
    const float* before_scale = nullptr;
    const float* before_shift = nullptr;
    bool relu = false;
    const float* after_scale = nullptr;
    const float* after_shift = nullptr;

    bool plain() const { return !before_scale && !before_shift && !relu && !after_scale; }
    // That of the channels from one on.
    Epilogue from(int channel) const {
        Epilogue e = *this;
        for (const float** values : {&e.before_scale, &e.before_shift, &e.after_scale, &e.after_shift})
            if (*values) *values += channel;
        return e;
    }
};

// Distances in floats between neighbours along each dimension of a tensor of images.
struct Strides {
    int64_t image, channel, row, column;
};

// Mean and sum of squared differences from it over one channel of one block.
struct Moments {
    double mean = 0.0, squares = 0.0;
};
constexpr int MOMENTS = 2 * BLOCK;  // floats of working memory, a channel

// BatchNorm with what follows it fused in, for one block: z = scale * y + shift, then ReLU, then
// 2x2 pooling with stride 2.
struct NormArgs {
    Shape shape;          // of the input
    int first_channel, end_channel;  // that are done; pointers are to all of them
    bool relu;
    PoolKind pool;
    bool input_relu;      // the input is what a ReLU gave; its gradient is passed through that ReLU
    int images;           // valid lanes
    const float *scale, *shift, *mean;  // a channel each
    const float *slope, *offset;        // gradient by input: scale * g + slope * y + offset
    // Dropout after all that, not with pooling: of 65,536; 0 for none. The forward pass draws `mask`;
    // with `recompute` it reads the mask drawn before, as the backward passes do.
    int dropped;
    bool recompute;
    uint16_t* mask;  // [channel][pixel], a bit an image
    uint64_t key;
    int layer;
    int64_t first_image;
};

// A separable convolution of one block.
struct SeparableArgs {
    const SeparableGeometry* geometry;
    const float* x;
    const NormArgs* norm;      // makes the input of x as it is read: BatchNorm and ReLU; null: x is the input
    const float* depthwise;    // weights [channel][row][column]
    const float* middle_bias;  // of the depthwise part, where a 1x1 part follows; null: none
    const float* packed;       // weights of the 1x1 part, packed for the pass
    float* scratch;
    Part part;
};

// Its backward pass. Sums are over the block's images and pixels; each goes where its pointer says, null: not wanted.
struct SeparableGradients {
    // The gradient by the output: dy, or what the BatchNorm `norm` makes of the gradient `da` by its own output; y is
    // that BatchNorm's input.
    const float* dy;
    const NormArgs* norm;
    const float *y, *da;
    // The gradient by the input, added where `add`. With SeparableArgs::norm it is passed through that ReLU, and
    // `sums` takes what `norm_sums` would give.
    float* dx;
    bool add;
    double* sums;
    float *depthwise, *middle_bias, *pointwise, *bias;
};

// One block of uint8 images, augmented or as they are, to normalized floats.
struct AugmentArgs {
    int channels, height, width, images;
    const uint8_t* const* pixels;  // of each image, [channel][row][column]
    const float* matrices;         // [16][6]: output to input pixel coordinates; null: as they are
    const float* offsets;          // [2][row][column][16] pixels to add in x and y; null: none
    bool nearest;
    float scale, shift;            // the output is scale * pixel + shift
};

// The factors of one step of SOAP; smidgen/engines/soap.py says what each is.
struct SoapFactors {
    float rate, beta1, beta2, correction2, epsilon, decay;
};

// A weight as a matrix [rows][columns], with its state. A side without axes is not rotated.
struct SoapMatrix {
    int rows, columns;
    float* weights;
    const float* gradients;
    float *mean, *square;
    float *row_products, *column_products;  // [rows][rows], [columns][columns]
    const float* row_axes;                  // [rows][rows], a column an axis; null: none
    const float* column_axes;               // [columns][columns], likewise
    const float* padded_axes;               // those of the columns, and transposed, in rows of `soap_padded` floats
    float* scratch;                         // `soap_scratch` floats, a multiple of BLOCK
};

// Floats of a row that vectors read and write: with zeros after its values.
inline int64_t soap_padded(int64_t count) { return (count + BLOCK - 1) / BLOCK * BLOCK; }
// For the gradient and what it is rotated to; for the gradient transposed; and for a product with itself.
inline int64_t soap_scratch(const SoapMatrix& m) {
    const int64_t wide = soap_padded(m.columns), tall = soap_padded(m.rows);
    const int64_t by_rows = m.row_axes ? m.rows * tall : 0, by_columns = m.column_axes ? m.columns * wide : 0;
    return 2 * m.rows * wide + (m.row_axes ? m.columns * tall : 0) + (by_rows > by_columns ? by_rows : by_columns);
}

// A convolution's three passes. Weights are first packed in the order in which they are read. A part of a pass computes
// some rows going forward and for the gradient by the input, some of the weights' gradients; a part of a separable
// convolution's backward pass some of its input's channels.
struct Convolutions {
    // Floats that the packed weights of one pass, and the scratch of one call, take.
    int64_t (*packed_floats)(const ConvGeometry&);
    void (*pack_forward)(const ConvGeometry&, const float* weights, float* packed);
    void (*pack_backward)(const ConvGeometry&, const float* weights, float* packed);
    int64_t (*scratch_floats)(const ConvGeometry&);
    // `moments`: where the output's statistics go, or null, as for a part; `state`: room for them, MOMENTS floats a
    // channel.
    void (*conv_forward)(const ConvGeometry&, const float* x, const float* packed, const Epilogue&, float* y,
                         float* scratch, const Part&, int images, Moments* moments, float* state);
    void (*conv_backward)(const ConvGeometry&, const float* dy, const float* packed, float* dx, bool add,
                          float* scratch, const Part&);
    // Sums over the block's images and pixels, not over blocks.
    void (*conv_weights)(const ConvGeometry&, const float* x, const float* dy, float* dw, float* db,
                         float* scratch, const Part&);

    // Chooses how many rows are worked on together for a cache of so many bytes.
    void (*separable_prepare)(SeparableGeometry&, int64_t cache);
    int64_t (*separable_scratch)(const SeparableGeometry&);  // floats, for one call
    void (*separable_forward)(const SeparableArgs&, const Epilogue&, float* y, int images, Moments* moments,
                              float* state);
    void (*separable_backward)(const SeparableArgs&, const SeparableGradients&);
};

struct Kernels {
    const char* name;
    Convolutions products32;
    const Convolutions* products16;  // with bfloat16 products and float32 sums; null: not at this level

    void (*relu_mask)(const float* y, float* dy, int64_t pixels);
    void (*moments)(const Shape&, const float* y, int images, Moments* out, float* state);
    void (*norm_forward)(const NormArgs&, const float* y, float* a);
    // Sums of g and of g * (y - mean) over the block, a channel each.
    void (*norm_sums)(const NormArgs&, const float* y, const float* da, double* sums);
    void (*norm_backward)(const NormArgs&, const float* y, const float* da, float* dy, bool add);

    void (*activation_forward)(ActivationFunction, const ActivationLimits&, const float* x, float* y, int64_t pixels);
    void (*activation_backward)(ActivationFunction, const ActivationLimits&, const float* x, const float* dy, float* dx,
                                int64_t pixels, bool add);
    void (*max_forward)(const PoolGeometry&, const float* x, float* y);
    void (*max_backward)(const PoolGeometry&, const float* x, const float* dy, float* dx, bool add);
    void (*average_forward)(const PoolGeometry&, const float* x, float* y);
    void (*average_backward)(const PoolGeometry&, const float* dy, float* dx, bool add);
    // Drops by counter-based random numbers: the same key, layer and image, the same values. `mask`
    // takes 16 bits a pixel for the backward pass.
    void (*dropout_forward)(uint64_t key, int layer, int64_t first_image, int dropped, const float* x, float* y,
                            uint16_t* mask, int64_t pixels);
    void (*dropout_backward)(int dropped, const uint16_t* mask, const float* dy, float* dx, int64_t pixels, bool add);
    void (*sum)(const float* a, const float* b, float* y, int64_t pixels);
    void (*copy)(const float* x, float* y, int64_t pixels, bool add);

    // Images of any strides (in floats) into a block, zeros in the unused lanes; returns whether all are finite.
    bool (*gather_block)(const float* from, const Strides&, const Shape&, int images, float* block);
    void (*scatter_block)(const float* block, const Shape&, int images, float* to);
    // Writes a block, zeros in the unused lanes. `scratch` takes `augment_scratch_bytes` bytes.
    int64_t (*augment_scratch_bytes)(const Shape&);
    void (*augment)(const AugmentArgs&, uint8_t* scratch, float* block);
    // Separable smoothing of [planes][height][width][16] with a symmetric kernel; zeros outside.
    void (*smooth)(float* field, int planes, int height, int width, const float* kernel, int radius, float* scratch);

    void (*soap_step)(const SoapMatrix&, const SoapFactors&);
    void (*soap_adam)(float* values, float* mean, float* square, int count, const SoapFactors&);

    // Fused multiply-adds a second of one thread, in products of 2 FLOP; `bfloat16` for dot products.
    double (*peak)(bool bfloat16, int64_t rounds);
};

// The levels that this build has and this CPU can run, best last; null-terminated.
const Kernels* const* available_kernels();

}  // namespace smidgen
