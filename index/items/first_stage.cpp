// The first stage of one list as `index/query/recommend.py` and `plan.py` compute it: what the user has seen, the nearest
// items by a walk or a scan, promoted and popular ones, their scores, and the list, or all candidates for a ranker. Both
// of those stay, as the oracle of the tests and for machines without a compiler.
//
// Every array is checked for its shape before it is read, every label before it is used, and a stored state byte by
// byte. No pointer outlives a call but those into arrays that a `List` holds. All of it runs under Python's lock, but for
// nodes that are added to a graph; nobody may walk it meanwhile.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "products.hpp"

namespace py = pybind11;

namespace {

template <typename T> using Array = py::array_t<T, py::array::c_style>;  // never a copy: another type is refused
using Mask = Array<bool>;

constexpr double LOWEST = -std::numeric_limits<double>::infinity();
constexpr size_t PAGE = 1 << 21;  // bytes of a large page
constexpr size_t AHEAD = 4;  // rows that are fetched from memory before they are multiplied

template <typename A> void shaped(const A& array, py::ssize_t dimensions, const char* name) {
    if (array.ndim() != dimensions) throw py::value_error(std::string(name) + " has another number of dimensions");
}

struct Near { float product; int32_t label; };  // the label of an item, or of a node
bool nearer(const Near& a, const Near& b) { return a.product > b.product || (a.product == b.product && a.label < b.label); }
using Nearest = std::vector<Near>;

// Keeps the `most` nearest as a heap, the furthest in front.
void keep(Nearest& heap, const Near& one, size_t most) {
    heap.push_back(one);
    std::push_heap(heap.begin(), heap.end(), nearer);
    if (heap.size() <= most) return;
    std::pop_heap(heap.begin(), heap.end(), nearer);
    heap.pop_back();
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
        first_ms_ = number<int64_t>(head + 24);
        const size_t folded = version == 3 ? number<uint16_t>(take(2 + 8)) : 0;
        wide_ = flags & WIDE_GAPS;
        gaps_ = take((wide_ ? 8 : 4) * (events ? events - 1 : 0));
        take(HASH * (events + evicted + folded));
        kinds = reinterpret_cast<const uint8_t*>(take(events));
        const char* times = take(8 * bought);
        for (size_t at = 0; at < bought; at++) bought_ms.push_back(number<int64_t>(times + 8 * at));
        const size_t count = events + bought;
        const char* sizes = take(flags & ONE_LENGTH ? count > 0 : count);
        for (size_t at = 0; at < count; at++) {
            const size_t size = static_cast<uint8_t>(sizes[flags & ONE_LENGTH ? 0 : at]) + 1u;
            ids.emplace_back(take(size), size);
        }
    }
    // Times [events] of the events.
    void times(int64_t* to) const {
        uint64_t at_ms = first_ms_;  // unsigned: what damaged bytes add up to may overflow
        for (size_t at = 0; at < events; at++) {
            if (at) at_ms += wide_ ? number<uint64_t>(gaps_ + 8 * (at - 1)) : number<uint32_t>(gaps_ + 4 * (at - 1));
            to[at] = static_cast<int64_t>(at_ms);
        }
    }
    size_t events;
    const uint8_t* kinds;  // [events]
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
    bool wide_;
    const char* gaps_;
    int64_t first_ms_;
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
    // Labels of a stored state's events, −1 of items that are not known or that `has` [size] does not name, with the
    // events' kinds and times.
    py::tuple events(std::string_view stored, const Mask& has) const {
        shaped(has, 1, "has");
        if (stored.empty()) return py::make_tuple(Array<int64_t>(0), Array<uint8_t>(0), Array<int64_t>(0));
        const Window window(stored);
        Array<int64_t> found(window.events), times(window.events);
        Array<uint8_t> kinds(window.events, window.kinds);
        window.times(times.mutable_data());
        const std::vector<int32_t> known = labels({window.ids.begin(), window.ids.begin() + window.events});
        for (size_t at = 0; at < window.events; at++)
            found.mutable_data()[at] = known[at] >= 0 && known[at] < has.size() && has.data()[known[at]] ? known[at] : -1;
        return py::make_tuple(found, kinds, times);
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

// A graph of nearest neighbours (HNSW, Malkov and Yashunin, 2018) that hnswlib has built, with vectors in halves. Nodes are
// numbered as they came; later ones are added here, by the same rules.
class Graph {
  public:
    // hnswlib's parameters as `Index.__getstate__` gives them, and the vectors [nodes, d] of its nodes in halves.
    Graph(const py::dict& built, const Array<Half>& halves, size_t capacity) {
        shaped(halves, 2, "halves");
        const auto number = [&](const char* name) { return built[name].cast<size_t>(); };
        const auto ground = built["data_level0"].cast<Array<int8_t>>();
        const auto upper = built["link_lists"].cast<Array<int8_t>>();
        const auto levels = built["element_levels"].cast<Array<int32_t>>();
        const size_t stride = number("size_data_per_element"), above = number("size_links_per_element");
        used_ = number("cur_element_count"), links_ = number("M"), wide_ = number("ef_construction"), dim_ = halves.shape(1);
        top_ = static_cast<int>(number("max_level")), entry_ = static_cast<uint32_t>(number("enterpoint_node"));
        if (!used_ || !links_ || size_t(halves.shape(0)) != used_ || size_t(levels.size()) < used_ || entry_ >= used_ ||
            size_t(ground.size()) < used_ * stride || stride < 4 * row() || above < 4 * (links_ + 1) || capacity < used_)
            throw py::value_error("no graph of hnswlib's");
        const size_t bytes = (capacity * dim_ * sizeof(Half) + PAGE) / PAGE * PAGE;
        halves_.reset(static_cast<Half*>(std::aligned_alloc(PAGE, bytes)));
        if (!halves_) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
        madvise(halves_.get(), bytes, MADV_HUGEPAGE);
#endif
        capacity_ = capacity;
        std::copy(halves.data(), halves.data() + halves.size(), halves_.get());
        ground_.reserve(capacity * row()), ground_.resize(used_ * row());
        upper_.resize(used_);
        size_t begin = 0;
        for (size_t node = 0; node < used_; node++) {
            copy(ground.data() + node * stride, 2 * links_, &ground_[node * row()]);
            const size_t height = levels.data()[node] < 0 ? 0 : levels.data()[node];
            if (begin + height * above > size_t(upper.size())) throw py::value_error("links are cut off");
            upper_[node].resize(height * (links_ + 1));
            for (size_t level = 0; level < height; level++, begin += above)
                copy(upper.data() + begin, links_, &upper_[node][level * (links_ + 1)]);
        }
        for (size_t node = 0; node < used_; node++)  // a walk goes where links lead, and at this height
            for (int level = 0; level <= height(node); level++)
                for (size_t at = 1; at <= links(node, level)[0]; at++)
                    if (links(node, level)[at] >= used_ || height(links(node, level)[at]) < level)
                        throw py::value_error("a link that leads nowhere");
        if (height(entry_) < top_) throw py::value_error("an entry that is too low");
    }

    // Inserts vectors [n, d] in halves; returns the first one's node.
    size_t add(const Array<Half>& halves) {
        shaped(halves, 2, "halves");
        if (size_t(halves.shape(1)) != dim_) throw py::value_error("vectors are not as wide as the graph's");
        const size_t count = halves.shape(0), first = used_;
        if (used_ + count > capacity_) throw py::value_error("no room for so many nodes");
        std::copy(halves.data(), halves.data() + halves.size(), halves_.get() + used_ * dim_);
        const py::gil_scoped_release others_may_run;
        for (size_t at = 0; at < count; at++) insert();
        return first;
    }

    size_t dim() const { return dim_; }
    size_t used() const { return used_; }
    const Half* vector(size_t node) const { return halves_.get() + node * dim_; }

    // About the `most` nearest nodes that `may` be found, in no order; false where it would go to more than `steps` nodes.
    template <typename May> bool walk(const float* query, size_t most, size_t steps, May may, Nearest& found) {
        uint32_t at = entry_;
        for (int level = top_; level > 0; level--) at = nearest(query, at, level);
        return search(query, at, most, 0, steps, may, found);
    }

  private:
    size_t row() const { return 2 * links_ + 1; }
    int height(size_t node) const { return static_cast<int>(upper_[node].size() / (links_ + 1)); }
    // How many links a node has at a level, and these.
    const uint32_t* links(size_t node, int level) const {
        return level ? &upper_[node][(level - 1) * (links_ + 1)] : &ground_[node * row()];
    }
    uint32_t* links(size_t node, int level) { return const_cast<uint32_t*>(std::as_const(*this).links(node, level)); }

    static void copy(const int8_t* from, size_t most, uint32_t* to) {
        uint16_t count;
        std::memcpy(&count, from, sizeof count);
        if (count > most) throw py::value_error("more links than there is room for");
        to[0] = count;
        std::memcpy(to + 1, from + 4, 4 * count);
    }

    // The nearest node that steps to nearer neighbours lead to.
    uint32_t nearest(const float* query, uint32_t at, int level) const {
        float best = product(query, vector(at), dim_);
        for (bool moved = true; moved;) {
            moved = false;
            const uint32_t* of = links(at, level);
            for (size_t n = 1; n <= of[0]; n++) fetch(vector(of[n]), dim_);
            for (size_t n = 1; n <= of[0]; n++) {
                const float near = product(query, vector(of[n]), dim_);
                if (near > best) best = near, at = of[n], moved = true;
            }
        }
        return at;
    }

    template <typename May>
    bool search(const float* query, uint32_t from, size_t most, int level, size_t steps, May may, Nearest& found) {
        if (seen_.size() < used_) seen_.resize(used_ + used_ / 8 + 64);
        if (!++tag_) std::fill(seen_.begin(), seen_.end(), 0), tag_ = 1;
        const auto further = [](const Near& a, const Near& b) { return a.product < b.product; };
        Nearest& open = open_;
        open.clear(), found.clear();
        const auto look = [&](uint32_t node) {
            const Near one{product(query, vector(node), dim_), static_cast<int32_t>(node)};
            if (found.size() >= most && one.product <= found.front().product) return;
            open.push_back(one);
            std::push_heap(open.begin(), open.end(), further);
            if (may(node)) keep(found, one, most);
        };
        seen_[from] = tag_;
        look(from);
        std::vector<uint32_t>& next = next_;
        while (!open.empty()) {
            const Near best = open.front();
            if (found.size() >= most && best.product < found.front().product) break;
            std::pop_heap(open.begin(), open.end(), further);
            open.pop_back();
            const uint32_t* of = links(best.label, level);
            next.clear();
            for (size_t n = 1; n <= of[0]; n++) {
                if (seen_[of[n]] == tag_) continue;
                seen_[of[n]] = tag_;
                next.push_back(of[n]);
                fetch(vector(of[n]), dim_);  // all of them are on their way before the first is multiplied
            }
            if (!open.empty()) __builtin_prefetch(links(open.front().label, level));
            if (next.size() > steps) return false;
            steps -= next.size();
            for (const uint32_t node : next) look(node);
        }
        return true;
    }

    // Of nodes, those that no other chosen one is nearer to than the middle is; `most` at most.
    void choose(Nearest& nodes, size_t most, uint32_t* links) {
        std::sort(nodes.begin(), nodes.end(), nearer);
        links[0] = 0;
        for (const Near& node : nodes) {
            if (links[0] == most) break;
            const float* own = floats(node.label, other_);
            bool apart = true;
            for (size_t at = 1; apart && at <= links[0]; at++) apart = product(own, vector(links[at]), dim_) <= node.product;
            if (apart) links[++links[0]] = node.label;
        }
    }

    const float* floats(size_t node, std::vector<float>& room) const {
        room.resize(dim_);
        for (size_t at = 0; at < dim_; at++) room[at] = one(vector(node) + at);
        return room.data();
    }

    // Links the next vector, which is already there.
    void insert() {
        const uint32_t node = static_cast<uint32_t>(used_);
        const float* query = floats(node, own_);
        const double drawn = std::uniform_real_distribution<double>(1e-12, 1.0)(random_);
        const int level = links_ < 2 ? 0 : static_cast<int>(-std::log(drawn) / std::log(double(links_)));
        upper_.emplace_back(level * (links_ + 1));
        ground_.resize(ground_.size() + row());
        used_++;
        uint32_t at = entry_;
        for (int high = top_; high > level; high--) at = nearest(query, at, high);
        for (int low = std::min(level, top_); low >= 0; low--) {
            const auto others = [node](uint32_t one) { return one != node; };
            search(query, at, wide_, low, used_, others, around_);
            choose(around_, links_, links(node, low));
            if (!around_.empty()) at = around_.front().label;
            const uint32_t* chosen = links(node, low);
            for (size_t n = 1; n <= chosen[0]; n++) back(chosen[n], node, low);
        }
        if (level > top_) top_ = level, entry_ = node;
    }

    // Links a node back to a new one.
    void back(uint32_t node, uint32_t added, int level) {
        const size_t most = level ? links_ : 2 * links_;
        uint32_t* of = links(node, level);
        if (of[0] < most) {
            of[++of[0]] = added;
            return;
        }
        const float* own = floats(node, middle_);
        back_.clear();
        for (size_t n = 1; n <= of[0]; n++) back_.push_back({product(own, vector(of[n]), dim_), int32_t(of[n])});
        back_.push_back({product(own, vector(added), dim_), int32_t(added)});
        choose(back_, most, of);
    }

    struct Free {
        void operator()(Half* memory) const { std::free(memory); }
    };
    size_t used_, capacity_, dim_, links_, wide_;
    int top_;
    uint32_t entry_;
    std::unique_ptr<Half[], Free> halves_;      // [capacity, d]
    std::vector<uint32_t> ground_;              // [nodes, 1 + 2 links] how many links, and these
    std::vector<std::vector<uint32_t>> upper_;  // the same of each level above
    std::vector<uint16_t> seen_;                // [nodes] tag of the last search that came by
    uint16_t tag_ = 0;
    Nearest open_, around_, back_;
    std::vector<uint32_t> next_;
    std::vector<float> own_, middle_, other_;
    std::mt19937_64 random_{1};
};

// Where items lie in a graph: labels by node, and the node of each label's present vector.
class Places {
  public:
    Places(const Graph& graph, const Array<int64_t>& labels, const Array<int32_t>& node)
        : labels_(labels.data()), node_(node.data()), size_(node.size()) {
        shaped(labels, 1, "labels"), shaped(node, 1, "nodes");
        if (size_t(labels.size()) < graph.used()) throw py::value_error("nodes without a label");
    }
    int64_t label(size_t node) const {  // −1 of a node whose label has another one
        const int64_t found = labels_[node];
        return found >= 0 && found < int64_t(size_) && node_[found] == int32_t(node) ? found : -1;
    }

  private:
    const int64_t* labels_;
    const int32_t* node_;
    size_t size_;
};

// Nodes that were found become labels; the nearest first, `most` at most.
void settle(Nearest& found, const Places& places, size_t most) {
    for (Near& one : found) one.label = static_cast<int32_t>(places.label(one.label));
    std::sort(found.begin(), found.end(), nearer);
    if (found.size() > most) found.resize(most);
}

// The `k` nearest of usable labels [size] to queries [q, d]; None where some query has not found so many. `wide` nodes
// are kept on the way, and `steps` are gone at most.
py::object nearest(Graph& graph, const Array<float>& queries, size_t k, size_t wide, size_t steps, const Mask& usable,
                   const Array<int64_t>& labels, const Array<int32_t>& node) {
    shaped(queries, 2, "queries"), shaped(usable, 1, "usable");
    const size_t dim = graph.dim(), count = queries.shape(0);
    if (size_t(queries.shape(1)) != dim) throw py::value_error("queries are not as wide as the graph's vectors");
    const Places places(graph, labels, node);
    py::array_t<int64_t> found({count, k});
    py::array_t<float> products({count, k});
    Nearest near;
    for (size_t at = 0; at < count; at++) {
        const float* query = queries.data() + at * dim;
        const auto may = [&](size_t one) {
            const int64_t label = places.label(one);
            return label >= 0 && label < usable.size() && usable.data()[label];
        };
        if (!graph.walk(query, std::max(k, wide), steps, may, near) || near.size() < k) return py::none();
        settle(near, places, k);
        for (size_t n = 0; n < k; n++) {
            found.mutable_data()[at * k + n] = near[n].label;
            products.mutable_data()[at * k + n] = near[n].product;
        }
    }
    return py::make_tuple(found, products);
}

// One list while it is made. Holds the arrays that it reads.
class List {
  public:
    // Items [size] that may be listed and those of the index with a vector [at least end], halves [at least end, d] by
    // label, the catalogue's ids by label, and the vectors [q, d] to search near to.
    List(Mask allowed, Mask live, Array<Half> halves, size_t end, py::list ids, Array<float> targets)
        : allowed_(std::move(allowed)), live_(std::move(live)), halves_(std::move(halves)), targets_(std::move(targets)),
          ids_(std::move(ids)) {
        shaped(allowed_, 1, "allowed"), shaped(live_, 1, "live"), shaped(halves_, 2, "halves"), shaped(targets_, 2, "targets");
        dim_ = halves_.shape(1);
        end_ = std::min({end, size_t(allowed_.size()), size_t(live_.size()), size_t(halves_.shape(0)), ids_.size()});
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

    // Where a graph has the items, with labels by node and nodes by label.
    void placed(Graph& graph, Array<int64_t> labels, Array<int32_t> node) {
        if (graph.dim() != dim_) throw py::value_error("a graph of another width");
        graph_ = &graph, labels_ = std::move(labels), node_ = std::move(node);
        places_.emplace(graph, labels_, node_);
    }

    // The nearest `depth` of about `count` allowed items, by a walk that keeps `wide` nodes, and of labels beside the
    // graph; false where it did not find so many in so many steps.
    bool walk(size_t depth, size_t count, size_t wide, size_t steps, const Array<int64_t>& beside) {
        shaped(beside, 1, "labels");
        if (!graph_) return false;
        begin(depth);
        std::vector<int32_t> others;
        for (py::ssize_t at = 0; at < beside.size(); at++)
            if (may(beside.at(at))) others.push_back(static_cast<int32_t>(beside.at(at)));
        const size_t wanted = std::min(depth, count - std::min(count, others.size()));
        const auto found = [this](size_t node) {
            const int64_t label = places_->label(node);
            return label >= 0 && may(label);
        };
        for (size_t slot = 0; slot < near_.size(); slot++) {
            auto& near = near_[slot];
            if (!graph_->walk(target(slot), std::max(wide, depth), steps, found, near) || near.size() < wanted) return false;
            settle(near, *places_, depth);
            for (const int32_t label : others) near.push_back({product(target(slot), row(label), dim_), label});
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
        std::vector<Nearest> found(near_.size());
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
        for (const auto& of : near_)
            for (const Near& one : of) pool_.push_back(one.label);
        std::sort(pool_.begin(), pool_.end());
        pool_.erase(std::unique(pool_.begin(), pool_.end()), pool_.end());
        for (const int32_t label : pool_) fetch(row(label), dim_);
        const double highest = std::log1p(most);
        std::vector<float> near(slots_);
        cosines_.clear(), context_.clear(), popularity_.clear(), promotion_.clear(), ranker_.clear();
        for (const int32_t label : pool_) {
            multiply(users.data(), slots_, row(label), dim_, near.data());
            cosines_.insert(cosines_.end(), near.begin(), near.end());
            if (delta) context_.push_back(product(delta->data(), row(label), dim_));
            if (boosts) promotion_.push_back(boosts->data()[label]);
            int64_t& number = numbers.mutable_data()[label];
            if (number == UNKNOWN) number = number_of(items, label);
            const bool counted = number >= 0 && number < weights.size();
            popularity_.push_back(counted && most > 0 ? share * (std::log1p(weights.data()[number]) / highest) : 0.0);
        }
    }

    // Keeps the `most` best candidates of each slot: their labels [m], and what products, offset and popularity of each add
    // up to [m, q].
    py::tuple best(size_t most) {
        const size_t size = pool_.size();
        if (size > most && most) {
            std::vector<bool> kept(size);
            std::vector<double> scores(size), order;
            for (size_t slot = 0; slot < slots_; slot++) {
                for (size_t at = 0; at < size; at++) scores[at] = score(at, slot);
                order = scores;
                std::nth_element(order.begin(), order.begin() + (most - 1), order.end(), std::greater<>());
                for (size_t at = 0; at < size; at++) kept[at] = kept[at] || scores[at] >= order[most - 1];
            }
            reduce(kept);
        }
        Array<int64_t> labels(pool_.size());
        std::copy(pool_.begin(), pool_.end(), labels.mutable_data());
        Array<double> first({pool_.size(), slots_});
        for (size_t at = 0; at < pool_.size(); at++)
            for (size_t slot = 0; slot < slots_; slot++)
                first.mutable_data()[at * slots_ + slot] =
                    cosines_[at * slots_ + slot] + (context_.empty() ? 0.0 : context_[at]) + popularity_[at];
        return py::make_tuple(labels, first);
    }
    // What a ranker adds to the scores of the candidates [m, q].
    void add(const Array<double>& part) {
        if (part.ndim() != 2 || size_t(part.shape(0)) != pool_.size() || size_t(part.shape(1)) != slots_)
            throw py::value_error("a part is not of the candidates");
        ranker_.assign(part.data(), part.data() + part.size());
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
            if (!ranker_.empty()) parts.append(ranker_[place * slots_ + slot]);
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
    const Half* row(int32_t label) const { return halves_.data() + size_t(label) * dim_; }
    const float* target(size_t slot) const { return targets_.data() + slot * dim_; }

    static double edge(const Nearest& near, size_t depth) {
        return near.size() < depth || near.empty() ? LOWEST : double(near.back().product) + ROUNDING;
    }

    void scan(std::vector<Nearest>& found, size_t depth, const std::optional<Array<int32_t>>& rows) const {
        if (rows) shaped(*rows, 1, "rows");
        const size_t count = rows ? rows->size() : end_;
        const int32_t* given = rows ? rows->data() : nullptr;
        for (auto& near : found) near.clear();
        std::vector<float> products(found.size());
        for (size_t at = 0; at < count && depth; at++) {
            const int64_t label = given ? given[at] : int64_t(at);
            if (given && at + AHEAD < count && given[at + AHEAD] >= 0 && given[at + AHEAD] < int64_t(end_))
                fetch(row(given[at + AHEAD]), dim_);
            if (label < 0 || label >= int64_t(end_) || !allowed_.data()[label] || !live_.data()[label]) continue;
            multiply(targets_.data(), found.size(), row(static_cast<int32_t>(label)), dim_, products.data());
            for (size_t slot = 0; slot < found.size(); slot++) {
                const Near one{products[slot], static_cast<int32_t>(label)};
                if (found[slot].size() == depth && !nearer(one, found[slot].front())) continue;
                if (seen_.has(one.label)) break;
                keep(found[slot], one, depth);
            }
        }
        for (auto& near : found) std::sort(near.begin(), near.end(), nearer);
    }

    double score(size_t at, size_t slot) const {
        double found = cosines_[at * slots_ + slot];
        if (!context_.empty()) found += context_[at];
        found += popularity_[at];
        if (!promotion_.empty()) found += promotion_[at];
        if (!ranker_.empty()) found = static_cast<float>(found + ranker_[at * slots_ + slot]);  // as `pool.compared`
        return std::isnan(found) ? LOWEST : found;
    }

    // Drops the candidates that are not kept.
    void reduce(const std::vector<bool>& kept) {
        const auto shrink = [&](auto& column, size_t width) {
            if (column.empty()) return;
            size_t to = 0;
            for (size_t at = 0; at < kept.size(); at++)
                for (size_t n = 0; kept[at] && n < width; n++) column[to++] = column[at * width + n];
            column.resize(to);
        };
        shrink(cosines_, slots_), shrink(context_, 1), shrink(popularity_, 1), shrink(promotion_, 1), shrink(pool_, 1);
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
    Array<Half> halves_;
    Array<float> targets_;
    py::list ids_;
    Graph* graph_ = nullptr;
    Array<int64_t> labels_;
    Array<int32_t> node_;
    std::optional<Places> places_;
    size_t dim_, end_, depth_ = 0, slots_ = 0, popular_ = 0;
    Marks seen_;
    std::vector<Nearest> near_;  // by target
    std::vector<double> edges_;  // of promoted items, by target
    std::vector<int32_t> promoted_, pool_;
    std::vector<double> cosines_, context_, popularity_, promotion_, ranker_;  // of the pool; [m], first and last [m, q]
};

}  // namespace

PRODUCTS_END

PYBIND11_MODULE(_native, module) {
    if (!CAN_MULTIPLY) throw py::import_error("this processor lacks AVX2, FMA or F16C");
    module.doc() = "The first stage of one list, as index.query.recommend and index.query.plan, and what it walks.";
    py::class_<Names>(module, "Names").def(py::init<>()).def("set", &Names::set).def("drop", &Names::drop).def(
        "events", &Names::events);
    py::class_<Graph>(module, "Graph")
        .def(py::init<const py::dict&, const Array<Half>&, size_t>())
        .def("add", &Graph::add)
        .def("nearest", &nearest);
    py::class_<List>(module, "List")
        .def(py::init<Mask, Mask, Array<Half>, size_t, py::list, Array<float>>())
        .def("see", &List::see)
        .def("leave_out", &List::leave_out)
        .def("placed", &List::placed, py::keep_alive<1, 2>())
        .def("walk", &List::walk)
        .def("scan", py::overload_cast<size_t, const std::optional<Array<int32_t>>&>(&List::scan))
        .def("promote", &List::promote)
        .def("gather", &List::gather)
        .def("best", &List::best)
        .def("add", &List::add)
        .def("retrieved", &List::retrieved)
        .def("choose", &List::choose);
}
