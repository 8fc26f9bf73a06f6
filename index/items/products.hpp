// Inner products of vectors with vectors in halves, by what AVX2, FMA and F16C do at once where there are those. Included
// behind all other headers; the code between is for that processor, until PRODUCTS_END. A module looks at CAN_MULTIPLY when
// it is loaded.

#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define INTEL 1
#define PRODUCTS_END _Pragma("GCC pop_options")
#define CAN_MULTIPLY (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
#else
#define PRODUCTS_END
#define CAN_MULTIPLY true
#endif

namespace {

constexpr size_t LINE = 64;  // bytes that memory brings at once

typedef uint16_t Half;  // a float of 16 bits as stored
typedef float Vector __attribute__((vector_size(32), aligned(4), may_alias));
inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline float one(const Half* from) {
    _Float16 value;
    std::memcpy(&value, from, sizeof value);
    return static_cast<float>(value);
}
#ifdef INTEL
inline Vector load(const Half* from) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }
#else
inline Vector load(const Half* from) {
    Vector found;
    for (size_t lane = 0; lane < 8; lane++) found[lane] = one(from + lane);
    return found;
}
#endif

// Products of one vector with `N` others. Always in the same order, so that equal vectors have equal products; what is no
// number counts as least.
template <size_t N> std::array<float, N> products(const std::array<const float*, N>& others, const Half* own, size_t dim) {
    Vector sums[N][4] = {};
    size_t at = 0;
    for (; at + 32 <= dim; at += 32)
        for (size_t part = 0; part < 4; part++) {
            const Vector numbers = load(own + at + 8 * part);  // converted once for all
            for (size_t n = 0; n < N; n++) sums[n][part] += load(others[n] + at + 8 * part) * numbers;
        }
    std::array<float, N> found;
    for (size_t n = 0; n < N; n++) {
        const Vector all = (sums[n][0] + sums[n][1]) + (sums[n][2] + sums[n][3]);
        found[n] = ((all[0] + all[4]) + (all[1] + all[5])) + ((all[2] + all[6]) + (all[3] + all[7]));
        for (size_t left = at; left < dim; left++) found[n] += others[n][left] * one(own + left);
        if (std::isnan(found[n])) found[n] = -std::numeric_limits<float>::infinity();
    }
    return found;
}
inline float product(const float* a, const Half* b, size_t dim) { return products<1>({a}, b, dim)[0]; }

// Products of one vector with all of others [n, d].
inline void multiply(const float* others, size_t count, const Half* own, size_t dim, float* found) {
    size_t at = 0;
    for (; at + 2 <= count; at += 2) {
        const auto both = products<2>({others + at * dim, others + (at + 1) * dim}, own, dim);
        found[at] = both[0], found[at + 1] = both[1];
    }
    if (at < count) found[at] = product(others + at * dim, own, dim);
}

inline void fetch(const Half* row, size_t dim) {
    for (size_t at = 0; at < dim; at += LINE / sizeof(Half)) __builtin_prefetch(row + at);
    __builtin_prefetch(row + dim - 1);  // a row need not begin with a line
}

}  // namespace
