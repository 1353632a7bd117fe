// The microkernel: a tile of output rows times a panel of output channels, its input rows read through pointers.
#pragma once
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>

#ifndef SACT_WIDTH
#define SACT_WIDTH 4 // floats per vector: 16 (AVX-512), 8 (AVX2), 4 (NEON, portable)
#endif
#ifndef SACT_ROWS
#define SACT_ROWS 6 // rows per tile: as many as leave registers for two vectors of weights
#endif

namespace sact {

constexpr int kWidth = SACT_WIDTH;
constexpr int kRows = SACT_ROWS;
constexpr int kPanel = 2 * kWidth;

typedef float Vec __attribute__((vector_size(4 * SACT_WIDTH)));
typedef float VecU __attribute__((vector_size(4 * SACT_WIDTH), aligned(4), may_alias));

inline Vec load(const float *p) { return *reinterpret_cast<const VecU *>(p); }
inline void store(float *p, Vec v) { *reinterpret_cast<VecU *>(p) = v; }
// The sum of a vector's elements, by halves: unions of vectors stay in registers.
inline float sum(Vec v) {
    typedef float Quarter __attribute__((vector_size(16)));
    union Parts {
        Vec whole;
        Quarter quarters[kWidth / 4];
    } parts = {v};
    if (kWidth == 16) {
        parts.quarters[0] += parts.quarters[2 % (kWidth / 4)];
        parts.quarters[1 % (kWidth / 4)] += parts.quarters[3 % (kWidth / 4)];
    }
    if (kWidth >= 8) parts.quarters[0] += parts.quarters[1 % (kWidth / 4)];
    const Quarter q = parts.quarters[0];
    return (q[0] + q[1]) + (q[2] + q[3]);
}

// exp(x) to within 2 units in the last place for |x| <= 87, beyond which it stays there; NaN for NaN.
inline Vec exponential(Vec x) {
    typedef int32_t Ints __attribute__((vector_size(4 * SACT_WIDTH)));
    const float limit = 87.0f;
    x = x > limit ? Vec{} + limit : x;
    x = x < -limit ? Vec{} - limit : x;
    const Vec shifted = x * 1.44269504f + 12582912.0f; // 1.5 * 2^23: rounds to whole numbers
    const Vec whole = shifted - 12582912.0f;
    const Vec r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f; // |r| <= log(2) / 2
    Vec result = r * 1.9875691500e-4f + 1.3981999507e-3f;
    for (float coefficient : {8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f})
        result = result * r + coefficient;
    result = result * r * r + r + 1.0f;
    union {
        Vec floats;
        Ints bits;
    } scale;
    scale.bits = (__builtin_convertvector(whole, Ints) + 127) << 23;
    return result * scale.floats;
}

// An activation; `kind` is a SactActivationKind.
struct Activation {
    int kind = 0;
    float slope = 1.0f, cap = std::numeric_limits<float>::infinity();

    bool none() const { return kind == 0 && slope == 1.0f && cap == std::numeric_limits<float>::infinity(); }
    Vec operator()(Vec v) const {
        if (kind == 0) {
            v = v > 0.0f ? v : v * slope;
            return v > cap ? Vec{} + cap : v;
        }
        if (kind == 1) return v / (1.0f + exponential(-v));
        if (kind == 2) {
            Vec gate = v + 3.0f;
            gate = gate > 0.0f ? gate : Vec{};
            return v * (gate > 6.0f ? Vec{} + 6.0f : gate) * (1.0f / 6.0f);
        }
        // x Phi(x); the error function to within 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26).
        const Vec x = (v > 0.0f ? v : -v) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * x);
        Vec tail = t * 1.061405429f - 1.453152027f;
        for (float coefficient : {1.421413741f, -0.284496736f, 0.254829592f}) tail = tail * t + coefficient;
        tail = tail * t * exponential(-x * x) * 0.5f; // Phi(-|v|)
        return v * (v > 0.0f ? 1.0f - tail : tail);
    }
    // To many vectors, in place.
    template <int Rows, int Vectors> void apply(Vec values[Rows][Vectors]) const {
        if (none()) return;
        if (kind == 0 && slope == 0.0f) { // the most common
            for (int i = 0; i < Rows; i++)
                for (int j = 0; j < Vectors; j++) {
                    const Vec v = values[i][j] > 0.0f ? values[i][j] : Vec{};
                    values[i][j] = v > cap ? Vec{} + cap : v;
                }
            return;
        }
        for (int i = 0; i < Rows; i++)
            for (int j = 0; j < Vectors; j++) values[i][j] = (*this)(values[i][j]);
    }
};

struct Tile {
    const float *const *rows; // [mr * taps]: where each tap of each row reads its `depth` inputs
    int taps, depth;
    const float *weights; // [taps * depth, vectors * kWidth]
    const float *bias;    // [vectors * kWidth]
    float *const *out;    // [mr], at the panel's first channel
    bool add;             // onto what is there
    Activation activation; // of the result
    const char *ahead;    // weights to fetch meanwhile: `ahead_step` bytes for each row of weights used here
    size_t ahead_step;
};

// out[i] = activation(bias + sum over taps and depth of rows[i][k] * weights[k] (+ out[i]))
template <int MR, int NV> void multiply(const Tile &tile) {
    Vec acc[MR][NV];
    for (int j = 0; j < NV; j++) {
        const Vec bias = load(tile.bias + j * kWidth);
        for (int i = 0; i < MR; i++) acc[i][j] = bias;
    }
    // What is added to, or overwritten, arrives from the outer caches while the products are summed.
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NV * kWidth; j += 16) __builtin_prefetch(tile.out[i] + j, 1, 3);
    const float *weights = tile.weights;
    const char *ahead = tile.ahead;
    for (int t = 0; t < tile.taps; t++) {
        const float *row[MR];
        for (int i = 0; i < MR; i++) row[i] = tile.rows[i * tile.taps + t];
        for (int k = 0; k < tile.depth; k++) {
            Vec w[NV];
            for (int j = 0; j < NV; j++) w[j] = load(weights + j * kWidth);
            weights += NV * kWidth;
            __builtin_prefetch(ahead, 0, 2);
            ahead += tile.ahead_step;
#pragma GCC unroll 32
            for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
                for (int j = 0; j < NV; j++) acc[i][j] += row[i][k] * w[j];
        }
    }
    if (tile.add)
        for (int i = 0; i < MR; i++)
            for (int j = 0; j < NV; j++) acc[i][j] += load(tile.out[i] + j * kWidth);
    tile.activation.apply<MR, NV>(acc);
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NV; j++) store(tile.out[i] + j * kWidth, acc[i][j]);
}

// Products of row after row with a matrix of its own each.
struct Products {
    const float *rows; // of one output: [count, width], `rows_step` floats behind those of the last
    size_t rows_step;
    int width, depth;     // floats from row to row, and those that count
    const float *weights; // [count, depth, vectors * kWidth]
    float *out;           // the same as rows: [count, vectors * kWidth]
    size_t out_step;
    int count;
};

// out[i][p] = sum over depth of rows[i][p][k] * weights[p][k]
template <int MR, int NV> void multiply(const Products &of) {
    const float *weights = of.weights;
    const size_t next = size_t(of.depth) * NV * kWidth;
    for (int p = 0; p < of.count; p++) {
        Vec acc[MR][NV] = {};
        const float *row[MR];
        for (int i = 0; i < MR; i++) row[i] = of.rows + i * of.rows_step + p * of.width;
        for (int k = 0; k < of.depth; k++) {
            Vec w[NV];
            for (int j = 0; j < NV; j++) {
                w[j] = load(weights + j * kWidth);
                __builtin_prefetch(weights + next + j * kWidth, 0, 2);
            }
            weights += NV * kWidth;
#pragma GCC unroll 32
            for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
                for (int j = 0; j < NV; j++) acc[i][j] += row[i][k] * w[j];
        }
        float *out = of.out + p * NV * kWidth;
        for (int i = 0; i < MR; i++)
            for (int j = 0; j < NV; j++) store(out + i * of.out_step + j * kWidth, acc[i][j]);
    }
}

template <class Task, int MR, int NV> struct Table {
    static void fill(void (**table)(const Task &)) {
        table[MR] = multiply<MR, NV>;
        Table<Task, MR - 1, NV>::fill(table);
    }
};
template <class Task, int NV> struct Table<Task, 0, NV> {
    static void fill(void (**)(const Task &)) {}
};

// Multiply for `mr` outputs (1 to kRows) and `vectors` (1 or 2) vectors of channels.
template <class Task> void multiply(const Task &task, int mr, int vectors) {
    struct Tables {
        void (*of[3][kRows + 1])(const Task &);
        Tables() {
            Table<Task, kRows, 1>::fill(of[1]);
            Table<Task, kRows, 2>::fill(of[2]);
        }
    };
    static const Tables tables;
    tables.of[vectors][mr](task);
}

} // namespace sact
