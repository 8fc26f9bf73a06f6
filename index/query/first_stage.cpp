// The first stage of one list as `recommend.py` and `plan.py` compute it: what the user has seen, the nearest items by a
// walk's answer or a scan, promoted and popular ones, their scores, and the list, or all candidates for a ranker. Both of
// those stay, as the oracle of the tests and for machines without a compiler.
//
// Every array is checked for its shape before it is read, every label before it is used, and a stored state byte by
// byte. No pointer outlives a call but those into arrays that a `List` holds. All of it runs under Python's lock.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define INTEL 1
#endif

namespace py = pybind11;

namespace {

template <typename T> using Array = py::array_t<T, py::array::c_style>;  // never a copy: another type is refused
using Mask = Array<bool>;

constexpr double LOWEST = -std::numeric_limits<double>::infinity();
constexpr size_t AHEAD = 8;  // rows that are fetched from memory before they are multiplied

template <typename A> void shaped(const A& array, py::ssize_t dimensions, const char* name) {
    if (array.ndim() != dimensions) throw py::value_error(std::string(name) + " has another number of dimensions");
}

typedef float Vector __attribute__((vector_size(32), aligned(4), may_alias));
inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }

// Always in the same order, so that equal vectors have equal products; what is no number counts as least.
float product(const float* a, const float* b, size_t dim) {
    Vector sums[4] = {};
    size_t at = 0;
    for (; at + 32 <= dim; at += 32)
        for (size_t part = 0; part < 4; part++) sums[part] += load(a + at + 8 * part) * load(b + at + 8 * part);
    const Vector all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float found = 0;
    for (size_t lane = 0; lane < 8; lane++) found += all[lane];
    for (; at < dim; at++) found += a[at] * b[at];
    return std::isnan(found) ? static_cast<float>(LOWEST) : found;
}

void fetch(const float* row, size_t dim) {
    for (size_t at = 0; at < dim; at += 16) __builtin_prefetch(row + at);
}

// A user's state as `records.encode_state` writes it: who was seen and when. Raises ValueError where it is cut off.
class Window {
  public:
    explicit Window(std::string_view stored) : left_(stored) {
        const char* head = take(HEADER);
        const uint8_t version = head[0], flags = head[1];
        if (version != 2 && version != 3) throw py::value_error("a state of an unknown version");
        events = number<uint16_t>(head + 2);
        const size_t evicted = number<uint16_t>(head + 4), bought = number<uint16_t>(head + 6);
        const size_t folded = version == 3 ? number<uint16_t>(take(2 + 8)) : 0;
        take((flags & WIDE_GAPS ? 8 : 4) * (events ? events - 1 : 0));
        take(HASH * (events + evicted + folded));
        take(events);
        const char* times = take(8 * bought);
        for (size_t at = 0; at < bought; at++) bought_ms.push_back(number<int64_t>(times + 8 * at));
        const size_t count = events + bought;
        const char* sizes = take(flags & ONE_LENGTH ? count > 0 : count);
        for (size_t at = 0; at < count; at++) {
            const size_t size = static_cast<uint8_t>(sizes[flags & ONE_LENGTH ? 0 : at]) + 1u;
            ids.emplace_back(take(size), size);
        }
    }
    size_t events;
    std::vector<int64_t> bought_ms;
    std::vector<std::string_view> ids;  // of the events, then of what was bought before

  private:
    static constexpr size_t HEADER = 32, HASH = 7;
    static constexpr uint8_t WIDE_GAPS = 1, ONE_LENGTH = 2;
    template <typename T> static T number(const char* at) {
        T found;
        std::memcpy(&found, at, sizeof found);
        return found;
    }
    const char* take(size_t size) {
        if (size > left_.size()) throw py::value_error("a stored state is cut off");
        const char* found = left_.data();
        left_.remove_prefix(size);
        return found;
    }
    std::string_view left_;
};

// Labels of items by id. An id is known by 64 bits of a hash that begins anew in each process: of a million items two
// are taken for one another once in 10^7 processes.
class Names {
  public:
    Names() : slots_(1024) {
        std::random_device random;
        seed_ = (static_cast<uint64_t>(random()) << 32) | random();
    }
    void set(std::string_view id, int32_t label) {
        if (label < 0) throw py::value_error("labels begin at 0");
        if (2 * ++used_ > slots_.size()) grow();
        Slot& slot = slots_[place(hash(id))];
        slot = {hash(id), label};
    }
    void drop(std::string_view id) {
        Slot& slot = slots_[place(hash(id))];
        if (slot.label != FREE) slot.label = GONE;
    }
    // Of all the ids: what they point to is fetched before the first is looked at.
    std::vector<int32_t> labels(const std::vector<std::string_view>& ids) const {
        std::vector<uint64_t> hashes;
        hashes.reserve(ids.size());
        for (const auto& id : ids) {
            hashes.push_back(hash(id));
            __builtin_prefetch(&slots_[hashes.back() & (slots_.size() - 1)]);
        }
        std::vector<int32_t> found;
        found.reserve(ids.size());
        for (const uint64_t one : hashes) found.push_back(std::max(GONE, slots_[place(one)].label));
        return found;
    }

  private:
    static constexpr int32_t GONE = -1, FREE = -2;
    struct Slot { uint64_t hash = 0; int32_t label = FREE; };
    static uint64_t mixed(uint64_t value) {
        const auto wide = static_cast<unsigned __int128>(value) * 0x9E3779B97F4A7C15u;
        return static_cast<uint64_t>(wide >> 64) ^ static_cast<uint64_t>(wide);
    }
    uint64_t hash(std::string_view id) const {
        uint64_t found = mixed(seed_ ^ id.size());
        for (size_t at = 0; at < id.size(); at += 8) {
            uint64_t word = 0;
            std::memcpy(&word, id.data() + at, std::min<size_t>(8, id.size() - at));
            found = mixed(found ^ word ^ seed_);
        }
        return found;
    }
    size_t place(uint64_t hash) const {
        size_t at = hash & (slots_.size() - 1);
        while (slots_[at].label != FREE && slots_[at].hash != hash) at = (at + 1) & (slots_.size() - 1);
        return at;
    }
    void grow() {
        std::vector<Slot> before(slots_.size() * 2);
        before.swap(slots_);
        used_ = 1;
        for (const Slot& slot : before) {
            if (slot.label < 0) continue;
            slots_[place(slot.hash)] = slot;
            used_++;
        }
    }
    uint64_t seed_;
    size_t used_ = 0;
    std::vector<Slot> slots_;
};

// Labels that were seen or left out, by open addressing.
class Marks {
  public:
    Marks() : slots_(1024, -1) {}
    bool add(int32_t label) {  // whether it is new
        if (2 * ++count_ > slots_.size()) grow();
        int32_t& slot = slots_[place(label)];
        if (slot == label) return count_--, false;
        slot = label;
        return true;
    }
    bool has(int32_t label) const { return slots_[place(label)] == label; }

  private:
    size_t place(int32_t label) const {
        size_t at = (static_cast<uint32_t>(label) * 0x9E3779B1u >> 7) & (slots_.size() - 1);
        while (slots_[at] != -1 && slots_[at] != label) at = (at + 1) & (slots_.size() - 1);
        return at;
    }
    void grow() {
        std::vector<int32_t> before(slots_.size() * 2, -1);
        before.swap(slots_);
        for (const int32_t label : before)
            if (label >= 0) slots_[place(label)] = label;
    }
    size_t count_ = 0;
    std::vector<int32_t> slots_;
};

struct Near { float product; int32_t label; };
bool nearer(const Near& a, const Near& b) { return a.product > b.product || (a.product == b.product && a.label < b.label); }

// One list while it is made. Holds the arrays that it reads.
class List {
  public:
    // Items [size] that may be listed and those of the index with a vector [at least end], vectors [at least end, d] by
    // label, the catalogue's ids by label, and the vectors [q, d] to search near to.
    List(Mask allowed, Mask live, Array<float> matrix, size_t end, py::list ids, Array<float> targets)
        : allowed_(std::move(allowed)), live_(std::move(live)), matrix_(std::move(matrix)), targets_(std::move(targets)),
          ids_(std::move(ids)) {
        shaped(allowed_, 1, "allowed"), shaped(live_, 1, "live"), shaped(matrix_, 2, "vectors"), shaped(targets_, 2, "targets");
        dim_ = matrix_.shape(1);
        end_ = std::min({end, size_t(allowed_.size()), size_t(live_.size()), size_t(matrix_.shape(0)), ids_.size()});
        if (size_t(targets_.shape(1)) != dim_) throw py::value_error("targets are not as wide as vectors");
        near_.resize(targets_.shape(0));
    }

    // Takes out what a stored state says was seen, purchases since a time; how many of the allowed these are.
    size_t see(const Names& names, std::string_view stored, int64_t since_ms) {
        if (stored.empty()) return 0;  // nothing is known of the user
        const Window window(stored);
        size_t found = 0, at = 0;
        for (const int32_t label : names.labels(window.ids)) {
            if (at < window.events || window.bought_ms[at - window.events] > since_ms) found += leave(label);
            at++;
        }
        return found;
    }
    size_t leave_out(const Array<int64_t>& labels) {
        shaped(labels, 1, "labels");
        size_t found = 0;
        for (py::ssize_t at = 0; at < labels.size(); at++)
            if (labels.at(at) >= 0 && labels.at(at) < int64_t(end_)) found += leave(static_cast<int32_t>(labels.at(at)));
        return found;
    }

    // The nearest `depth` of `count` allowed items, from nodes [q, m] of a walk with their distances, labels by node,
    // nodes by label, and labels beside the graph; false where the walk did not find so many.
    bool walked(size_t depth, size_t count, const Array<uint64_t>& nodes, const Array<float>& distances,
                const Array<int64_t>& labels, const Array<int32_t>& node, const Array<int64_t>& beside) {
        shaped(nodes, 2, "nodes"), shaped(distances, 2, "distances"), shaped(beside, 1, "labels");
        shaped(labels, 1, "labels"), shaped(node, 1, "nodes");
        begin(depth);
        const size_t width = nodes.shape(1);
        if (size_t(nodes.shape(0)) != near_.size() || distances.shape(0) != nodes.shape(0) || distances.shape(1) != nodes.shape(1))
            throw py::value_error("a walk has another shape");
        std::vector<int32_t> others;
        for (py::ssize_t at = 0; at < beside.size(); at++)
            if (may(beside.at(at))) others.push_back(static_cast<int32_t>(beside.at(at)));
        const size_t wanted = std::min(depth, count - std::min(count, others.size()));
        for (size_t slot = 0; slot < near_.size(); slot++) {
            auto& near = near_[slot];
            near.clear();
            for (size_t at = 0; at < width && near.size() < wanted; at++) {
                const uint64_t of = nodes.data()[slot * width + at];
                if (of >= size_t(labels.size())) throw py::value_error("a node that the graph does not have");
                const int64_t label = labels.data()[of];
                if (may(label) && label < node.size() && node.data()[label] == int32_t(of))
                    near.push_back({1.0f - distances.data()[slot * width + at], int32_t(label)});
            }
            if (near.size() < wanted) return false;
            for (const int32_t label : others) near.push_back({product(row(label), target(slot), dim_), label});
            if (others.empty()) continue;
            std::sort(near.begin(), near.end(), nearer);
            near.resize(std::min(near.size(), depth));
        }
        return true;
    }

    // The nearest `depth` by a look at all allowed items, or at `rows`, which are all of them.
    void scan(size_t depth, const std::optional<Array<int32_t>>& rows) {
        begin(depth);
        scan(near_, depth, rows);
    }

    // The nearest `depth` of rows that a promotion pushes up by `boost`.
    void promote(size_t depth, const Array<int32_t>& rows, double boost) {
        std::vector<std::vector<Near>> found(near_.size());
        scan(found, depth, rows);
        edges_.resize(near_.size(), LOWEST);
        for (size_t slot = 0; slot < found.size(); slot++) {
            edges_[slot] = std::max(edges_[slot], edge(found[slot], depth) + boost);
            for (const Near& one : found[slot]) promoted_.push_back(one.label);
        }
        std::sort(promoted_.begin(), promoted_.end());
        promoted_.erase(std::unique(promoted_.begin(), promoted_.end()), promoted_.end());
    }

    // Makes all candidates, `popular` ones among them, and the parts of their scores: products with `users` [q, d] and,
    // where there is one, with the offset, popularity from weights by number, and what promotions add by label. Numbers
    // by label that nobody has looked up are looked up among `items`.
    void gather(const Array<int64_t>& popular, const Array<float>& users, const std::optional<Array<float>>& delta,
                Array<int64_t>& numbers, const py::dict& items, const Array<double>& weights, double most, double share,
                const std::optional<Array<float>>& boosts) {
        shaped(popular, 1, "labels"), shaped(users, 2, "users"), shaped(numbers, 1, "numbers"), shaped(weights, 1, "weights");
        slots_ = near_.size();
        if (size_t(users.shape(0)) != slots_ || size_t(users.shape(1)) != dim_ || (delta && size_t(delta->size()) != dim_))
            throw py::value_error("users are not as targets");
        if (size_t(numbers.size()) < end_ || (boosts && size_t(boosts->size()) < end_))
            throw py::value_error("a column is shorter than the catalogue");
        pool_ = promoted_;
        popular_ = 0;
        for (py::ssize_t at = 0; at < popular.size(); at++) {
            if (!may(popular.at(at))) continue;
            pool_.push_back(static_cast<int32_t>(popular.at(at)));
            popular_++;
        }
        for (const auto& near : near_)
            for (const Near& one : near) pool_.push_back(one.label);
        std::sort(pool_.begin(), pool_.end());
        pool_.erase(std::unique(pool_.begin(), pool_.end()), pool_.end());
        for (const int32_t label : pool_) fetch(row(label), dim_);
        const double highest = std::log1p(most);
        cosines_.clear(), context_.clear(), popularity_.clear(), promotion_.clear();
        for (const int32_t label : pool_) {
            for (size_t slot = 0; slot < slots_; slot++)
                cosines_.push_back(product(row(label), users.data() + slot * dim_, dim_));
            if (delta) context_.push_back(product(row(label), delta->data(), dim_));
            if (boosts) promotion_.push_back(boosts->data()[label]);
            int64_t& number = numbers.mutable_data()[label];
            if (number == UNKNOWN) number = number_of(items, label);
            const bool counted = number >= 0 && number < weights.size();
            popularity_.push_back(counted && most > 0 ? share * (std::log1p(weights.data()[number]) / highest) : 0.0);
        }
    }

    // Labels [m] of the candidates, products [m, q] with users, and the parts [m] of offset, popularity and promotions;
    // None for what there is not.
    py::tuple parts() const {
        const auto column = [](const std::vector<double>& of) -> py::object {
            return of.empty() ? py::object(py::none()) : py::object(py::array_t<double>(of.size(), of.data()));
        };
        py::array_t<int64_t> labels(pool_.size());
        std::copy(pool_.begin(), pool_.end(), labels.mutable_data());
        py::array_t<double> products({pool_.size(), slots_}, cosines_.data());
        return py::make_tuple(labels, products, column(context_), column(popularity_), column(promotion_));
    }

    // How many candidates each target, promotions and popularity brought.
    py::tuple retrieved() const {
        py::list found;
        for (const auto& near : near_) found.append(near.size());
        found.append(promoted_.size());
        found.append(popular_);
        return py::tuple(found);
    }

    // The `count` best as (id, slot, parts), one of each slot in turn; ties by id. None where what was not found could be
    // better, as what it has beside its nearness adds up to `rest` at most; `deepest` does not ask.
    std::optional<py::list> choose(size_t count, double rest, bool deepest) const {
        const size_t size = pool_.size(), most = std::min(count, size);
        std::vector<std::vector<size_t>> best(slots_);
        std::vector<double> scores(size);
        const auto before = [&](size_t a, size_t b) {
            if (scores[a] != scores[b]) return scores[a] > scores[b];
            return PyUnicode_Compare(id(pool_[a]).ptr(), id(pool_[b]).ptr()) < 0;
        };
        for (size_t slot = 0; slot < slots_; slot++) {
            auto& order = best[slot];
            for (size_t at = 0; at < size; at++) {
                scores[at] = score(at, slot);
                order.push_back(at);
            }
            std::partial_sort(order.begin(), order.begin() + most, order.end(), before);
            order.resize(most);
            const double last = size >= count && count ? scores[order.back()] : LOWEST;
            const double promised = edges_.empty() ? LOWEST : edges_[slot];
            if (!deepest && std::max(promised, edge(near_[slot], depth_)) + rest > last) return std::nullopt;
        }
        py::list found;
        std::vector<bool> chosen(size);
        std::vector<size_t> next(slots_);
        while (found.size() < count && slots_) {
            const size_t slot = found.size() % slots_;
            size_t& at = next[slot];
            while (at < most && chosen[best[slot][at]]) at++;
            if (at == most) break;
            const size_t place = best[slot][at];
            chosen[place] = true;
            py::list parts;
            parts.append(cosines_[place * slots_ + slot]);
            if (!context_.empty()) parts.append(context_[place]);
            parts.append(popularity_[place]);
            if (!promotion_.empty()) parts.append(promotion_[place]);
            found.append(py::make_tuple(id(pool_[place]), slot, parts));
        }
        return found;
    }

  private:
    static constexpr int64_t UNKNOWN = -2;
    static constexpr double ROUNDING = 1e-5;  // between inner products of a search and ours

    void begin(size_t depth) {
        depth_ = depth;
        edges_.clear(), promoted_.clear();
    }
    bool leave(int32_t label) {
        return label >= 0 && size_t(label) < end_ && seen_.add(label) && allowed_.data()[label] && live_.data()[label];
    }
    bool may(int64_t label) const {
        return label >= 0 && label < int64_t(end_) && allowed_.data()[label] && live_.data()[label] &&
               !seen_.has(static_cast<int32_t>(label));
    }
    const float* row(int32_t label) const { return matrix_.data() + size_t(label) * dim_; }
    const float* target(size_t slot) const { return targets_.data() + slot * dim_; }

    static double edge(const std::vector<Near>& near, size_t depth) {
        return near.size() < depth || near.empty() ? LOWEST : double(near.back().product) + ROUNDING;
    }

    void scan(std::vector<std::vector<Near>>& found, size_t depth, const std::optional<Array<int32_t>>& rows) const {
        if (rows) shaped(*rows, 1, "rows");
        const size_t count = rows ? rows->size() : end_;
        const int32_t* given = rows ? rows->data() : nullptr;
        for (auto& near : found) near.clear();
        for (size_t at = 0; at < count && depth; at++) {
            const int64_t label = given ? given[at] : int64_t(at);
            if (given && at + AHEAD < count && given[at + AHEAD] >= 0 && given[at + AHEAD] < int64_t(end_))
                fetch(row(given[at + AHEAD]), dim_);
            if (label < 0 || label >= int64_t(end_) || !allowed_.data()[label] || !live_.data()[label]) continue;
            for (size_t slot = 0; slot < found.size(); slot++) {
                auto& near = found[slot];
                const Near one{product(row(int32_t(label)), target(slot), dim_), int32_t(label)};
                if (near.size() == depth && !nearer(one, near.front())) continue;
                if (seen_.has(one.label)) break;
                near.push_back(one);
                std::push_heap(near.begin(), near.end(), nearer);
                if (near.size() <= depth) continue;
                std::pop_heap(near.begin(), near.end(), nearer);
                near.pop_back();
            }
        }
        for (auto& near : found) std::sort(near.begin(), near.end(), nearer);
    }

    double score(size_t at, size_t slot) const {
        double found = cosines_[at * slots_ + slot];
        if (!context_.empty()) found += context_[at];
        found += popularity_[at];
        if (!promotion_.empty()) found += promotion_[at];
        return std::isnan(found) ? LOWEST : found;
    }

    py::handle id(int32_t label) const {
        PyObject* found = PyList_GetItem(ids_.ptr(), label);
        if (!found) throw py::error_already_set();
        if (!PyUnicode_Check(found)) throw py::type_error("an id that is no text");
        return found;
    }

    int64_t number_of(const py::dict& items, int32_t label) const {
        PyObject* found = PyDict_GetItemWithError(items.ptr(), id(label).ptr());
        if (found) return py::handle(found).cast<int64_t>();
        if (PyErr_Occurred()) throw py::error_already_set();
        return -1;
    }

    Mask allowed_, live_;
    Array<float> matrix_, targets_;
    py::list ids_;
    size_t dim_, end_, depth_ = 0, slots_ = 0, popular_ = 0;
    Marks seen_;
    std::vector<std::vector<Near>> near_;  // by target
    std::vector<double> edges_;            // of promoted items, by target
    std::vector<int32_t> promoted_, pool_;
    std::vector<double> cosines_, context_, popularity_, promotion_;  // of the pool; [m, q], then [m] or none
};

}  // namespace

#ifdef INTEL
#pragma GCC pop_options
#endif

PYBIND11_MODULE(_native, module) {
#ifdef INTEL
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        throw py::import_error("this processor lacks AVX2 or FMA");
#endif
    module.doc() = "The first stage of one list, as index.query.recommend and index.query.plan.";
    py::class_<Names>(module, "Names").def(py::init<>()).def("set", &Names::set).def("drop", &Names::drop);
    py::class_<List>(module, "List")
        .def(py::init<Mask, Mask, Array<float>, size_t, py::list, Array<float>>())
        .def("see", &List::see)
        .def("leave_out", &List::leave_out)
        .def("walked", &List::walked)
        .def("scan", py::overload_cast<size_t, const std::optional<Array<int32_t>>&>(&List::scan))
        .def("promote", &List::promote)
        .def("gather", &List::gather)
        .def("parts", &List::parts)
        .def("retrieved", &List::retrieved)
        .def("choose", &List::choose);
}
