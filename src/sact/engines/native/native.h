// The C interface of the CPU engine. One plain description of a network goes in, packed weights stay inside, images are
// run against them. No PyTorch, no Python: numbers and pointers only. All numbers are float32.
#pragma once
#include <cstdint>

#define SACT_ABI 5

#if defined(__GNUC__)
#define SACT_API extern "C" __attribute__((visibility("default")))
#else
#define SACT_API extern "C"
#endif

// A convolution: weight [out, in / groups, kernel, kernel], bias [out] or null. `pad` zeros on every side, or with
// same != 0 TensorFlow's SAME padding, whose odd zero goes behind.
struct SactConv {
    int32_t in, out, kernel, stride, pad, same, groups;
    const float *weight, *bias;
};

enum SactActivationKind { SACT_SLOPE = 0, SACT_SILU = 1, SACT_HARD_SWISH = 2, SACT_GELU = 3 };

// SACT_SLOPE: min(x > 0 ? x : slope * x, cap); slope 1 and an infinite cap: nothing. The others have no parameters.
struct SactActivation {
    int32_t kind;
    float slope, cap;
};

// Position-wise layers: a norm, then an activation. The norm is x * scale + shift (both [channels], or null); of x less
// its mean over the channels and divided by its deviation where eps > 0 (layer norm).
struct SactPointwise {
    const float *scale, *shift;
    float eps;
    SactActivation activation;
};

// One convolution of a branch with the position-wise layers before it. A norm that is not the first stage's stands
// before a 1x1 convolution.
struct SactStage {
    SactPointwise before;
    SactConv conv;
};

// A score head: sigmoid(local + global). local: a 3x3 convolution to one channel, weight [channels, 3, 3] or null (ACT).
// global: a product with the mean over all positions, weight [channels].
struct SactScore {
    SactPointwise local_before, global_before;
    const float *local_weight, *global_weight;
    float bias;
};

enum SactShortcut { SACT_IDENTITY = 0, SACT_CONVOLUTION = 1, SACT_POOL_PAD = 2, SACT_NO_SHORTCUT = 3 };

// A residual unit. The shortcut reads the state, or the first stage's pre-activated one; SACT_POOL_PAD averages over
// stride x stride positions (those inside the picture) and puts the channels at `before`, with zeros around them.
// `after` stands behind the sum; with a norm only in a block's first unit. No stages: the state is after(x).
struct SactUnit {
    int32_t channels, n_stages, shortcut, preactivated, stride, before;
    const SactStage *stages;
    const SactConv *projection;
    SactPointwise after;
    const SactScore *score; // null behind the last unit, and in plain blocks
};

enum SactHalting { SACT_NONE = 0, SACT_IMAGES = 1, SACT_POSITIONS = 2 };

// Units that follow each other; what stands between somebody's blocks is a block without halting. The output is the
// weighted mean of the states, or with halted != 0 the state at halting.
struct SactBlock {
    int32_t n_units, halting, halted;
    float threshold; // an element halts once its cumulative score reaches this, 1 - eps
    const SactUnit *units;
};

enum SactPool { SACT_NO_POOL = 0, SACT_POOL_SAME = 1, SACT_POOL_PADDED = 2 };

// stem_pool: 3x3/2 max-pooling behind the stem, with TensorFlow's SAME padding or one line on every side.
// The classifier reads the mean of before(x) (pool_first == 0) or before(mean of x); classes == 0: features only.
// stem.out == 0: there is no stem, and blocks are run one by one.
struct SactNetwork {
    int32_t n_blocks, stem_pool, pool_first, classes;
    SactConv stem;
    SactActivation after_stem;
    const SactBlock *blocks;
    SactPointwise before_classifier;
    SactConv classifier;
};

// What a run writes, per block, null where it is not wanted; and what it is told anew each time. P is positions of the
// block's output, in all images.
struct SactBlockResult {
    int32_t *units;            // [P] (positions) or [N] (images)
    float *cost;               // the same
    float *distribution;       // [N, units, H, W] or [N, units]
    float *features;           // [P, channels]
    const int32_t *forced;     // units to run, instead of what the scores say: [P] or [N]
    float shift;               // added to the logit of every score
};

struct SactModel;

// Pack a network's weights; what was passed may be freed. Null where a dimension is impossible or memory is short.
SACT_API SactModel *sact_pack(const SactNetwork *network);
SACT_API void sact_free(SactModel *model);
// Run images [n, in, height, width], given by strides in elements. logits: [n, classes] or null.
// 0 when done, 1 where memory is short, 2 where the images hold NaN or infinite values, 3 where they are too many or too
// large for 32-bit numbers of positions.
SACT_API int sact_run(SactModel *model, const float *images, const int64_t strides[4], int32_t n, int32_t height,
                      int32_t width, int32_t threads, float *logits, SactBlockResult *blocks);
// Run one block on its input x [n, height, width, channels], where its first unit keeps the size; output likewise.
// Returns what sact_run returns, but that nobody looks for NaN.
SACT_API int sact_run_block(SactModel *model, int32_t block, const float *x, int32_t n, int32_t height, int32_t width,
                            int32_t threads, float *output, SactBlockResult *result);
// Bytes of working memory that the model keeps for its next runs.
SACT_API int64_t sact_workspace_bytes(SactModel *model);
// Which process imported sact: in one forked from it PyTorch's threads are missing, and those of the network are its own.
SACT_API void sact_began_in(int64_t process);
SACT_API int32_t sact_abi();
// Floats in a vector of this build.
SACT_API int32_t sact_vector_width();
// Whether this processor runs the build named "avx512", "avx2", "neon" or "portable".
SACT_API int32_t sact_supports(const char *isa);
