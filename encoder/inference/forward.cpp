// The blocks of a "paper" or "gated" encoder without attention bias, over new rows of windows whose keys and values lie
// in the pages of `kv_cache.py`: what `incremental.py:IncrementalEncoder._forward` computes by torch, which stays the
// oracle of the tests and serves all else.
//
// Compiled twice: with WIDE for AVX-512, and without for AVX2 or, on other processors, for what the compiler makes of
// GCC's vectors. A module that the processor cannot run refuses to be imported. Arrays are checked before they are read.
// Weights are copied once, in panels of columns; a forward pass runs without Python's lock.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#pragma GCC push_options
#ifdef WIDE
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define INTEL 1
#elif defined(WIDE)
#error "this processor has no AVX-512"
#endif

namespace py = pybind11;

namespace {

#ifdef WIDE
constexpr int LANES = 16, VECTORS = 4;  // floats of a vector, vectors of a panel: as many as there are registers for
#else
constexpr int LANES = 8, VECTORS = 2;
#endif
constexpr int64_t PANEL = LANES * VECTORS, ROWS = 6, CHUNK = 192, MOST_PAGE = 64;
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));
typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t Order __attribute__((vector_size(32)));
typedef uint16_t Half;  // a float of 16 bits as stored

template <typename T> using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }
inline Vector spread(float value) { return Vector{} + value; }

#ifdef WIDE
inline Vector load(const Half* from) {
    return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline void store(Half* to, Vector value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtps_ph(0xffff, value, _MM_FROUND_TO_NEAREST_INT));
}
inline Eight folded(Vector of) {
    return _mm512_maskz_extractf32x8_ps(0xff, of, 0) + _mm512_maskz_extractf32x8_ps(0xff, of, 1);
}
#else
inline Eight folded(Vector of) { return of; }
#ifdef INTEL
inline Vector load(const Half* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline void store(Half* to, Vector value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}
#else
inline Vector load(const Half* from) {
    Vector found;
    for (int at = 0; at < LANES; at++) {
        _Float16 value;
        std::memcpy(&value, from + at, sizeof value);
        found[at] = value;
    }
    return found;
}
inline void store(Half* to, Vector value) {
    for (int at = 0; at < LANES; at++) {
        const _Float16 half = static_cast<_Float16>(value[at]);
        std::memcpy(to + at, &half, sizeof half);
    }
}
#endif
#endif

inline float sum(Vector of) {
    const Eight eight = folded(of);
    float found = 0;
    for (int at = 0; at < 8; at++) found += eight[at];
    return found;
}

// e^x to about one unit in the last place (the polynomial of Cephes); below -87 it is e^-87.
inline Vector exponential(Vector x) {
    const Vector least = spread(-87.0f), most = spread(88.0f);
    x = x < least ? least : x;
    x = x > most ? most : x;
    const Vector shift = spread(12582912.0f);  // rounds to a whole number when added
    const Vector whole = (x * 1.44269504f + shift) - shift;
    const Vector rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Vector found = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    found = found * rest + 8.3334519073e-3f;
    found = found * rest + 4.1665795894e-2f;
    found = found * rest + 1.6666665459e-1f;
    found = found * rest + 5.0000001201e-1f;
    found = found * (rest * rest) + rest + 1.0f;
    const Integers power = (__builtin_convertvector(whole, Integers) + 127) << 23;
    return found * reinterpret_cast<const Vector&>(power);
}

inline Vector sigmoid(Vector x) { return 1.0f / (1.0f + exponential(-x)); }

// The sums of eight vectors, in their order.
inline Eight sums(const Vector* of) {
    Eight pairs[4], fours[2];
    for (int at = 0; at < 4; at++) {
        const Eight a = folded(of[2 * at]), b = folded(of[2 * at + 1]);
        pairs[at] = __builtin_shuffle(a, b, Order{0, 8, 2, 10, 4, 12, 6, 14}) +
                    __builtin_shuffle(a, b, Order{1, 9, 3, 11, 5, 13, 7, 15});
    }
    for (int at = 0; at < 2; at++) {
        const Eight a = pairs[2 * at], b = pairs[2 * at + 1];
        fours[at] = __builtin_shuffle(a, b, Order{0, 1, 8, 9, 4, 5, 12, 13}) +
                    __builtin_shuffle(a, b, Order{2, 3, 10, 11, 6, 7, 14, 15});
    }
    return __builtin_shuffle(fours[0], fours[1], Order{0, 1, 2, 3, 8, 9, 10, 11}) +
           __builtin_shuffle(fours[0], fours[1], Order{4, 5, 6, 7, 12, 13, 14, 15});
}

// Floats at a multiple of 64 bytes.
class Floats {
  public:
    explicit Floats(size_t size = 0) : size_(size), at_(size ? make(size) : nullptr) {}
    void grow(size_t size) {
        if (size > size_) *this = Floats(size);
    }
    float* data() { return at_.get(); }
    const float* data() const { return at_.get(); }

  private:
    struct Free {
        void operator()(float* at) const { ::operator delete[](at, std::align_val_t(64)); }
    };
    static float* make(size_t size) {
        auto* at = static_cast<float*>(::operator new[](size * sizeof(float), std::align_val_t(64)));
        std::fill(at, at + size, 0.0f);
        return at;
    }
    size_t size_;
    std::unique_ptr<float[], Free> at_;
};

int64_t padded(int64_t size) { return (size + PANEL - 1) / PANEL * PANEL; }

using Affine = std::pair<Array<float>, Array<float>>;  // weights [out, in] and bias [out], or of a norm [d] and [d]

// Rows times weights plus bias. Each of several parts [out, in] begins at a panel of its own.
class Linear {
  public:
    Linear() = default;
    explicit Linear(const std::vector<Affine>& parts) {
        for (const auto& [weights, bias] : parts) {
            if (weights.ndim() != 2 || bias.ndim() != 1 || bias.shape(0) != weights.shape(0))
                throw py::value_error("weights and bias do not fit each other");
            if (in_ && padded(weights.shape(1)) != in_) throw py::value_error("parts read rows of different widths");
            in_ = padded(weights.shape(1));
            out_ += padded(weights.shape(0));
        }
        weights_ = Floats(in_ * out_);
        bias_ = Floats(out_);
        int64_t begin = 0;
        for (const auto& [weights, bias] : parts) {
            const auto value = weights.unchecked<2>();
            for (py::ssize_t out = 0; out < weights.shape(0); out++) {
                const int64_t column = begin + out;
                float* panel = weights_.data() + column / PANEL * PANEL * in_ + column % PANEL;
                for (py::ssize_t in = 0; in < weights.shape(1); in++) panel[in * PANEL] = value(out, in);
                bias_.data()[column] = bias.at(out);
            }
            begin += padded(weights.shape(0));
        }
    }
    int64_t in() const { return in_; }
    int64_t out() const { return out_; }

    // Columns `from` to `to` of the answer, from `rows` rows, `wide` apart, to rows `far` apart.
    void run(const float* x, int64_t wide, int64_t rows, float* y, int64_t far, int64_t from = 0, int64_t to = -1) const {
        for (int64_t column = from; column < (to < 0 ? out_ : to); column += PANEL) {
            const float *panel = weights_.data() + column * in_, *bias = bias_.data() + column;
            float* answer = y + column - from;
            int64_t row = 0;
            for (; row + ROWS <= rows; row += ROWS) some<ROWS>(x + row * wide, wide, panel, bias, answer + row * far, far);
            const float* rest = x + row * wide;
            float* into = answer + row * far;
            switch (rows - row) {
                case 1: some<1>(rest, wide, panel, bias, into, far); break;
                case 2: some<2>(rest, wide, panel, bias, into, far); break;
                case 3: some<3>(rest, wide, panel, bias, into, far); break;
                case 4: some<4>(rest, wide, panel, bias, into, far); break;
                case 5: some<5>(rest, wide, panel, bias, into, far); break;
            }
        }
    }

  private:
    template <int COUNT>
    void some(const float* x, int64_t wide, const float* panel, const float* bias, float* y, int64_t far) const {
        Vector found[COUNT][VECTORS];
        for (int row = 0; row < COUNT; row++)
            for (int at = 0; at < VECTORS; at++) found[row][at] = load(bias + at * LANES);
        for (int64_t in = 0; in < in_; in++, panel += PANEL) {
            Vector weight[VECTORS];
#pragma GCC unroll 4
            for (int at = 0; at < VECTORS; at++) weight[at] = load(panel + at * LANES);
#pragma GCC unroll 6
            for (int row = 0; row < COUNT; row++) {
                const Vector value = spread(x[row * wide + in]);
#pragma GCC unroll 4
                for (int at = 0; at < VECTORS; at++) found[row][at] += value * weight[at];
            }
        }
        for (int row = 0; row < COUNT; row++)
            for (int at = 0; at < VECTORS; at++) store(y + row * far + at * LANES, found[row][at]);
    }

    int64_t in_ = 0, out_ = 0;
    Floats weights_, bias_;
};

// Layer norm over rows of d, which fill whole panels.
class Norm {
  public:
    Norm() = default;
    explicit Norm(const Affine& of) : d_(of.first.shape(0)), weight_(d_), bias_(d_) {
        if (of.first.ndim() != 1 || of.second.ndim() != 1 || of.second.shape(0) != d_)
            throw py::value_error("a norm's weight and bias do not fit each other");
        std::copy(of.first.data(), of.first.data() + d_, weight_.data());
        std::copy(of.second.data(), of.second.data() + d_, bias_.data());
    }
    int64_t size() const { return d_; }
    void run(const float* x, int64_t rows, float* y) const {
        for (int64_t row = 0; row < rows; row++, x += d_, y += d_) {
            Vector total = {}, squares = {};
            for (int64_t at = 0; at < d_; at += LANES) total += load(x + at);
            const Vector mean = spread(sum(total) / d_);
            for (int64_t at = 0; at < d_; at += LANES) {
                const Vector gap = load(x + at) - mean;
                squares += gap * gap;
            }
            const Vector scale = spread(1.0f / std::sqrt(sum(squares) / d_ + 1e-5f));
            for (int64_t at = 0; at < d_; at += LANES)
                store(y + at, (load(x + at) - mean) * scale * load(weight_.data() + at) + load(bias_.data() + at));
        }
    }

  private:
    int64_t d_ = 0;
    Floats weight_, bias_;
};

void add(float* to, const float* what, int64_t size) {
    for (int64_t at = 0; at < size; at += LANES) store(to + at, load(to + at) + load(what + at));
}

// Where the keys and values of one layer lie: [pages, page, 2, heads, d_head].
template <typename T> struct Stored {
    T* cells;
    int64_t page, heads, d_head;
    int64_t row() const { return 2 * heads * d_head; }
    T* at(const int64_t* pages, int64_t position) const {
        return cells + (pages[position / page] * page + position % page) * row();
    }
};

// What COUNT queries [heads, d_head] read from positions 0 to `last` of a window, by one softmax that grows with it.
template <int COUNT, int WIDTH, typename T>
void attend(const float* const* queries, const Stored<T>& stored, const int64_t* pages, int64_t last, float* const* found) {
    constexpr int AT_ONCE = 8 / COUNT;  // positions whose products are summed together
    const int64_t d = stored.heads * stored.d_head, row = stored.row();
    const float scale = 1.0f / std::sqrt(static_cast<float>(stored.d_head));
    for (int query = 0; query < COUNT; query++) std::fill(found[query], found[query] + d, 0.0f);
    for (int64_t head = 0; head < stored.heads; head++) {
        const int64_t at_head = head * stored.d_head;
        float most[COUNT], total[COUNT];
        for (int query = 0; query < COUNT; query++) most[query] = -INFINITY, total[query] = 0;
        for (int64_t begin = 0; begin <= last; begin += stored.page) {
            const T* keys = stored.at(pages, begin) + at_head;
            const int64_t count = std::min(last - begin + 1, stored.page);
            alignas(64) float scores[COUNT][MOST_PAGE + LANES];
            for (int64_t first = 0; first < count; first += AT_ONCE) {
                Vector products[8] = {};
                for (int at = 0; at < WIDTH; at++)
                    for (int near = 0; near < AT_ONCE; near++) {
                        const Vector key = load(keys + std::min(first + near, count - 1) * row + at * LANES);
                        for (int query = 0; query < COUNT; query++)
                            products[query * AT_ONCE + near] += key * load(queries[query] + at_head + at * LANES);
                    }
                const Eight sum = sums(products) * scale;
                for (int query = 0; query < COUNT; query++)
                    for (int near = 0; near < AT_ONCE; near++)
                        scores[query][first + near] = sum[query * AT_ONCE + near];
            }
            for (int query = 0; query < COUNT; query++) {
                float* score = scores[query];
                for (int64_t at = count; at < (count + LANES - 1) / LANES * LANES; at++) score[at] = -INFINITY;
                float highest = most[query];
                for (int64_t at = 0; at < count; at++) highest = std::max(highest, score[at]);
                const float kept = begin ? std::exp(most[query] - highest) : 0.0f;
                for (int64_t at = 0; at < count; at += LANES) store(score + at, exponential(load(score + at) - highest));
                float added = 0;
                for (int64_t at = 0; at < count; at++) added += score[at];
                total[query] = total[query] * kept + added;
                most[query] = highest;
                if (kept != 1.0f)
                    for (int at = 0; at < WIDTH; at++) {
                        float* to = found[query] + at_head + at * LANES;
                        store(to, load(to) * kept);
                    }
            }
            Vector read[COUNT][WIDTH];
            for (int query = 0; query < COUNT; query++)
                for (int at = 0; at < WIDTH; at++) read[query][at] = load(found[query] + at_head + at * LANES);
            const T* values = keys + d;
            for (int64_t position = 0; position < count; position++, values += row)
                for (int at = 0; at < WIDTH; at++) {
                    const Vector value = load(values + at * LANES);
                    for (int query = 0; query < COUNT; query++) read[query][at] += value * scores[query][position];
                }
            for (int query = 0; query < COUNT; query++)
                for (int at = 0; at < WIDTH; at++) store(found[query] + at_head + at * LANES, read[query][at]);
        }
        for (int query = 0; query < COUNT; query++)
            for (int at = 0; at < WIDTH; at++) {
                float* to = found[query] + at_head + at * LANES;
                store(to, load(to) / total[query]);
            }
    }
}

template <int COUNT, typename T>
void attend_any(const float* const* queries, const Stored<T>& stored, const int64_t* pages, int64_t last,
                float* const* found) {
    switch (stored.d_head / LANES) {
        case 1: return attend<COUNT, 1>(queries, stored, pages, last, found);
        case 2: return attend<COUNT, 2>(queries, stored, pages, last, found);
        case 4: return attend<COUNT, 4>(queries, stored, pages, last, found);
        case 8: return attend<COUNT, 8>(queries, stored, pages, last, found);
        case 16: return attend<COUNT, 16>(queries, stored, pages, last, found);
    }
}

struct Layer {
    bool gated;
    Linear reading;  // queries [d], gates [d] of a gated block, keys and values [2 d]
    Linear output, widen, narrow;
    Norm attention_norm, second_norm;
};

// New rows of windows: row r is position[r] of request owner[r], whose pages are `pages` [requests, most].
struct Batch {
    int64_t rows, requests, most;
    const int64_t *owner, *position, *last, *pages;
    const int64_t* held(int64_t request) const { return pages + request * most; }
};

class Forward {
  public:
    Forward(bool gated, int64_t heads, const Array<float>& general, const std::vector<py::dict>& layers,
            const std::optional<Affine>& final_norm, const Affine& next_head, const Affine& general_head)
        : gated_(gated), heads_(heads), d_(general.size()), general_(d_), next_({next_head}), overall_({general_head}) {
        if (heads < 1 || !fits(d_, heads)) throw py::value_error("no such width of a head");
        std::copy(general.data(), general.data() + d_, general_.data());
        if (final_norm) final_ = Norm(*final_norm);
        for (const auto& given : layers) layers_.push_back(layer(given));
        const auto square = [this](const Linear& of) { return of.in() == d_ && of.out() == d_; };
        if (layers_.empty() || !square(next_) || !square(overall_) || (final_norm && final_.size() != d_))
            throw py::value_error("parts of a model do not fit each other");
    }

    // Whether rows and heads may be so wide.
    static bool fits(int64_t d, int64_t heads) {
        if (d % PANEL || d % heads || d / heads % LANES) return false;
        const int64_t width = d / heads / LANES;
        return width == 1 || width == 2 || width == 4 || width == 8 || width == 16;
    }

    // Vectors [requests, 2, d] of requests whose new rows x [rows, d] are in order of their positions; `last` [requests]
    // is each one's last row. Writes keys and values into `storage` [layers, pages, page, 2, heads, d_head].
    py::array_t<float> run(const Array<float>& x, const Array<int64_t>& owner, const Array<int64_t>& position,
                           const Array<int64_t>& last, const Array<int64_t>& pages, py::array storage) {
        const Batch batch = checked(x, owner, position, last, pages, storage);
        py::array_t<float> found({batch.requests, int64_t(2), d_});
        float* into = found.mutable_data();
        void* cells = storage.mutable_data();
        const float* rows = x.data();
        const int64_t page = storage.shape(2), whole = storage.shape(1);
        const bool halves = storage.itemsize() == sizeof(Half);
        py::gil_scoped_release released;
        if (halves) through(batch, rows, static_cast<Half*>(cells), page, whole, into);
        else through(batch, rows, static_cast<float*>(cells), page, whole, into);
        return found;
    }

  private:
    Layer layer(const py::dict& given) const {
        const auto affine = [&](const char* name) { return given[name].cast<Affine>(); };
        const auto parts = [&](const char* name) { return Linear(given[name].cast<std::vector<Affine>>()); };
        Layer found{gated_, parts("reading"), parts("output"), parts("widen"), parts("narrow"),
                    Norm(affine("attention_norm")), Norm(affine("second_norm"))};
        const int64_t forward = found.narrow.in();
        if (found.reading.in() != d_ || found.reading.out() != (gated_ ? 4 : 3) * d_ || found.output.in() != d_ ||
            found.output.out() != d_ || found.widen.in() != d_ || found.widen.out() != (gated_ ? 2 : 1) * forward ||
            found.narrow.out() != d_ || found.attention_norm.size() != d_ || found.second_norm.size() != d_)
            throw py::value_error("a layer's parts do not fit each other");
        return found;
    }

    Batch checked(const Array<float>& x, const Array<int64_t>& owner, const Array<int64_t>& position,
                  const Array<int64_t>& last, const Array<int64_t>& pages, const py::array& storage) const {
        const auto wrong = [](const char* what) { return py::value_error(what); };
        const bool floats = py::isinstance<py::array_t<float>>(storage);
        if (!(floats || (storage.dtype().kind() == 'f' && storage.itemsize() == sizeof(Half))) || storage.ndim() != 6 ||
            !(storage.flags() & py::array::c_style) || !storage.writeable())
            throw wrong("storage is not a cache's");
        if (storage.shape(0) != static_cast<py::ssize_t>(layers_.size()) || storage.shape(3) != 2 ||
            storage.shape(4) != heads_ || storage.shape(5) != d_ / heads_ || storage.shape(2) < 1 ||
            storage.shape(2) > MOST_PAGE)
            throw wrong("storage is not of this model");
        if (x.ndim() != 2 || x.shape(1) != d_ || owner.ndim() != 1 || position.ndim() != 1 || last.ndim() != 1 ||
            pages.ndim() != 2 || owner.shape(0) != x.shape(0) || position.shape(0) != x.shape(0) ||
            pages.shape(0) != last.shape(0))
            throw wrong("rows, owners, positions and pages do not fit each other");
        const Batch batch{x.shape(0),   last.shape(0), pages.shape(1), owner.data(),
                          position.data(), last.data(),   pages.data()};
        for (int64_t at = 0; at < batch.requests * batch.most; at++)
            if (batch.pages[at] < 0 || batch.pages[at] >= storage.shape(1)) throw wrong("a page is not in storage");
        for (int64_t row = 0; row < batch.rows; row++) {
            if (batch.owner[row] < 0 || batch.owner[row] >= batch.requests) throw wrong("a row belongs to nobody");
            if (batch.position[row] < 0 || batch.position[row] >= batch.most * storage.shape(2))
                throw wrong("a position is beyond its pages");
        }
        for (int64_t request = 0; request < batch.requests; request++)
            if (batch.last[request] < 0 || batch.last[request] >= batch.rows ||
                batch.owner[batch.last[request]] != request)
                throw wrong("a request's last row is not its own");
        return batch;
    }

    template <typename T>
    void through(const Batch& batch, const float* x, T* storage, int64_t page, int64_t pages, float* into) {
        const int64_t all = batch.rows + batch.requests, wide = (gated_ ? 4 : 3) * d_;
        rows_.grow(all * d_), read_.grow(all * d_), reading_.grow(all * wide), found_.grow(all * d_), next_rows_.grow(all * d_);
        std::copy(x, x + batch.rows * d_, rows_.data());
        for (int64_t request = 0; request < batch.requests; request++)
            std::copy(general_.data(), general_.data() + d_, rows_.data() + (batch.rows + request) * d_);
        ends_.assign(batch.rows, 0);
        for (int64_t request = 0; request < batch.requests; request++) ends_[batch.last[request]] = 1;
        for (size_t at = 0; at < layers_.size(); at++) {
            const Stored<T> stored{storage + at * pages * page * 2 * d_, page, heads_, d_ / heads_};
            block(layers_[at], batch, stored, at + 1 == layers_.size());
        }
        const int64_t two = 2 * batch.requests;  // the last block leaves these rows alone
        if (final_.size()) final_.run(rows_.data(), two, rows_.data());
        next_.run(rows_.data(), d_, batch.requests, into, 2 * d_);
        overall_.run(rows_.data() + batch.requests * d_, d_, batch.requests, into + d_, 2 * d_);
        for (int64_t row = 0; row < two; row++) {
            float* vector = into + row * d_;
            Vector squares = {};
            for (int64_t at = 0; at < d_; at += LANES) squares += load(vector + at) * load(vector + at);
            const float length = std::max(std::sqrt(sum(squares)), 1e-12f);
            for (int64_t at = 0; at < d_; at += LANES) store(vector + at, load(vector + at) / length);
        }
    }

    // One block over all rows; the last one needs keys and values of all, and else only what is read out of it.
    template <typename T> void block(const Layer& layer, const Batch& batch, const Stored<T>& stored, bool final) {
        const int64_t wide = (gated_ ? 4 : 3) * d_, queries = wide - 2 * d_;
        int64_t all = batch.rows + batch.requests;
        const float* seen = rows_.data();
        if (gated_) {
            layer.attention_norm.run(rows_.data(), all, read_.data());
            seen = read_.data();
        }
        in_chunks(batch.rows, [&](int64_t begin, int64_t count) {
            layer.reading.run(seen + begin * d_, d_, count, reading_.data() + begin * wide + queries, wide, queries);
        });
        for (int64_t row = 0; row < batch.rows; row++) {
            T* to = stored.at(batch.held(batch.owner[row]), batch.position[row]);
            const float* from = reading_.data() + row * wide + queries;
            for (int64_t at = 0; at < 2 * d_; at += LANES) store(to + at, load(from + at));
        }
        if (final) {
            pick(batch, rows_);
            if (gated_) pick(batch, read_);
            all = 2 * batch.requests;
        }
        in_chunks(all, [&](int64_t begin, int64_t count) {
            layer.reading.run(seen + begin * d_, d_, count, reading_.data() + begin * wide, wide, 0, queries);
        });
        const auto query = [&](int64_t row) { return reading_.data() + row * wide; };
        const auto answer = [&](int64_t row) { return found_.data() + row * d_; };
        const auto both = [&](int64_t row, int64_t overall, int64_t request, int64_t position) {
            const float* asked[] = {query(row), query(overall)};
            float* given[] = {answer(row), answer(overall)};
            attend_any<2>(asked, stored, batch.held(request), position, given);
        };
        if (final)
            for (int64_t at = 0; at < batch.requests; at++)
                both(at, batch.requests + at, at, batch.position[batch.last[at]]);
        else
            for (int64_t row = 0; row < batch.rows; row++) {
                const int64_t owner = batch.owner[row];
                if (ends_[row]) {
                    both(row, batch.rows + owner, owner, batch.position[row]);
                    continue;
                }
                const float* asked[] = {query(row)};
                float* given[] = {answer(row)};
                attend_any<1>(asked, stored, batch.held(owner), batch.position[row], given);
            }
        in_chunks(all, [&](int64_t begin, int64_t count) { finish(layer, begin, count, wide); });
    }

    // What follows attention, as `Block.finish`.
    void finish(const Layer& layer, int64_t begin, int64_t count, int64_t wide) {
        const int64_t forward = layer.narrow.in(), width = layer.widen.out();
        float *rows = rows_.data() + begin * d_, *found = found_.data() + begin * d_, *y = next_rows_.data() + begin * d_;
        widened_.grow(count * width), normed_.grow(count * d_);
        float *widened = widened_.data(), *normed = normed_.data();
        if (gated_)
            for (int64_t row = 0; row < count; row++)
                for (int64_t at = 0; at < d_; at += LANES) {
                    const Vector gate = sigmoid(load(reading_.data() + (begin + row) * wide + d_ + at));
                    store(found + row * d_ + at, load(found + row * d_ + at) * gate);
                }
        layer.output.run(found, d_, count, y, d_);
        add(y, rows, count * d_);
        if (!gated_) layer.attention_norm.run(y, count, y);
        const float* from = y;
        if (gated_) {
            layer.second_norm.run(y, count, normed);
            from = normed;
        }
        layer.widen.run(from, d_, count, widened, width);
        for (int64_t row = 0; row < count; row++) {
            float* of = widened + row * width;
            for (int64_t at = 0; at < forward; at += LANES) {
                const Vector left = load(of + at);
                if (gated_) store(of + at, left * sigmoid(left) * load(of + forward + at));
                else store(of + at, left > 0 ? left : Vector{});
            }
        }
        layer.narrow.run(widened, width, count, rows, d_);
        add(rows, y, count * d_);
        if (!gated_) layer.second_norm.run(rows, count, rows);
    }

    // Moves what is read out to the front: each request's last row, then its [GEN] row.
    void pick(const Batch& batch, Floats& of) {
        for (int64_t at = 0; at < batch.requests; at++)
            std::copy_n(of.data() + batch.last[at] * d_, d_, next_rows_.data() + at * d_);
        std::copy_n(of.data() + batch.rows * d_, batch.requests * d_, next_rows_.data() + batch.requests * d_);
        std::copy_n(next_rows_.data(), 2 * batch.requests * d_, of.data());
    }

    template <typename F> static void in_chunks(int64_t rows, F run) {
        for (int64_t begin = 0; begin < rows; begin += CHUNK) run(begin, std::min(CHUNK, rows - begin));
    }

    bool gated_;
    int64_t heads_, d_;
    Floats general_;
    std::vector<Layer> layers_;
    Norm final_;
    Linear next_, overall_;
    Floats rows_, read_, reading_, found_, next_rows_, widened_, normed_;  // of one pass
    std::vector<char> ends_;
};

}  // namespace

#ifdef INTEL
#pragma GCC pop_options
#endif

#ifdef WIDE
PYBIND11_MODULE(_native_wide, module) {
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl"))
        throw py::import_error("this processor lacks AVX-512");
#else
PYBIND11_MODULE(_native, module) {
#endif
#ifdef INTEL
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
        throw py::import_error("this processor lacks AVX2, FMA or F16C");
#endif
    module.doc() = "The encoder's blocks over cached windows, as encoder.inference.incremental.";
    module.attr("MOST_PAGE") = MOST_PAGE;
    module.def("fits", &Forward::fits, "Whether rows and heads may be so wide.");
    py::class_<Forward>(module, "Forward")
        .def(py::init<bool, int64_t, const Array<float>&, const std::vector<py::dict>&, const std::optional<Affine>&,
                      const Affine&, const Affine&>())
        .def("run", &Forward::run);
}
