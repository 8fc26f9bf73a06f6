// The features and the network's inputs of one list, as `features.py` and `network.py` compute them: same formulas, same
// meaning of NaN. Both of those stay, as the oracle of the tests and for machines without a compiler.
//
// Every array is checked for its shape before it is read, and every label and code before it is used. No pointer outlives
// a call, and nothing is kept between calls.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../items/products.hpp"

namespace py = pybind11;

namespace {

constexpr float NaN = std::numeric_limits<float>::quiet_NaN();

template <typename T> using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;
template <typename T> using Column = py::array_t<T, py::array::c_style>;  // never a copy: another type is refused
template <typename T> using Strided = py::array_t<T, py::array::forcecast>;
using Optional = std::optional<Array<float>>;

// Columns in the order of `features.FEATURES`, which is compared with these names when the module is loaded.
const std::vector<std::string> NAMES = {
    "next", "general", "context", "next_gap", "next_rank", "near_last", "near_recent", "near_session", "near_acted",
    "own_events", "own_gap", "own_places", "own_acted",
    "brand", "subclass", "category", "brand_acted", "subclass_acted", "brand_session", "subclass_session",
    "category_session",
    "price", "price_rank", "price_to_list", "price_to_recent", "level", "level_gap", "level_gap_acted",
    "popular", "popular_here", "views", "carts", "purchases", "carts_per_view", "purchases_per_view",
    "shown", "clicks_per_shown",
    "negative", "brand_negative", "subclass_negative",
    "list_brand", "list_subclass", "list_size",
    "position", "position_to_last",
};

size_t column(const char* name) {
    const auto at = std::find(NAMES.begin(), NAMES.end(), name);
    if (at == NAMES.end()) throw std::logic_error(name);
    return at - NAMES.begin();
}

enum EventClass : uint8_t { VIEW = 0, ACTED = 1, BOUGHT = 2, NEGATIVE = 3 };

bool acted(uint8_t of) { return of == ACTED || of == BOUGHT; }

// What catalogue records say of items, as `ItemFacts`.
struct Facts {
    Array<int32_t> brand, subclass, category;
    Array<float> price, level;
    const Array<int32_t>& code(int which) const { return which == 0 ? brand : which == 1 ? subclass : category; }
};

template <typename A> void sized(const A& array, size_t size, const char* name) {
    if (array.ndim() != 1 || static_cast<size_t>(array.shape(0)) != size)
        throw py::value_error(std::string(name) + " is not as long as its list");
}

void sized(const Facts& facts, size_t size) {
    for (int which = 0; which < 3; which++) sized(facts.code(which), size, "a column of labels");
    sized(facts.price, size, "price");
    sized(facts.level, size, "level");
}

Facts facts_of(const py::tuple& columns) {
    if (columns.size() != 5) throw py::value_error("facts are five columns");
    return {columns[0].cast<Array<int32_t>>(), columns[1].cast<Array<int32_t>>(), columns[2].cast<Array<int32_t>>(),
            columns[3].cast<Array<float>>(), columns[4].cast<Array<float>>()};
}

// The table [items, features] that is filled column by column.
class Table {
  public:
    Table(size_t items) : items_(items), found_({items, NAMES.size()}), cells_(found_.mutable_data()) {
        std::fill(cells_, cells_ + items * NAMES.size(), NaN);
    }
    float& at(size_t item, size_t feature) { return cells_[item * NAMES.size() + feature]; }
    template <typename F> void fill(const char* name, F value) {
        const size_t feature = column(name);
        for (size_t item = 0; item < items_; item++) at(item, feature) = value(item);
    }
    py::array_t<float> take() { return std::move(found_); }
    size_t items() const { return items_; }

  private:
    size_t items_;
    py::array_t<float> found_;
    float* cells_;
};

// Share of the list whose value is lower; NaN of an item without a value.
template <typename F> void rank(Table& table, const char* name, F value) {
    std::vector<float> known;
    known.reserve(table.items());
    for (size_t item = 0; item < table.items(); item++)
        if (!std::isnan(value(item))) known.push_back(value(item));
    std::sort(known.begin(), known.end());
    const double count = std::max<size_t>(1, known.size());
    table.fill(name, [&](size_t item) {
        const float own = value(item);
        if (std::isnan(own)) return NaN;
        return static_cast<float>((std::lower_bound(known.begin(), known.end(), own) - known.begin()) / count);
    });
}

// Mean of the known values, NaN without any.
class Mean {
  public:
    void add(float value) {
        if (std::isnan(value)) return;
        sum_ += value;
        count_++;
    }
    float value() const { return count_ ? static_cast<float>(sum_ / count_) : NaN; }

  private:
    double sum_ = 0;
    size_t count_ = 0;
};

float median(const float* values, size_t size) {
    std::vector<float> known;
    for (size_t at = 0; at < size; at++)
        if (!std::isnan(values[at])) known.push_back(values[at]);
    if (known.empty()) return NaN;
    const size_t middle = known.size() / 2;
    std::nth_element(known.begin(), known.begin() + middle, known.end());
    if (known.size() % 2) return known[middle];
    const float below = *std::max_element(known.begin(), known.begin() + middle);
    return (below + known[middle]) / 2;
}

struct History {
    Array<int64_t> labels, ts_ms;
    Array<uint8_t> classes;
    std::vector<bool> session;  // which events belong to a session that goes on
    size_t size() const { return labels.shape(0); }
    History(Array<int64_t> of, Array<uint8_t> kinds, Array<int64_t> times, int64_t now_ms, int64_t gap_ms)
        : labels(std::move(of)), ts_ms(std::move(times)), classes(std::move(kinds)) {
        sized(classes, size(), "classes");
        sized(ts_ms, size(), "times");
        session.assign(size(), false);
        int64_t next = now_ms;
        for (size_t at = size(); at-- > 0;) {
            if (next - ts_ms.at(at) > gap_ms) break;
            session[at] = true;
            next = ts_ms.at(at);
        }
    }
};

// Something for each of at most `most` distinct numbers, found by open addressing.
template <typename T> class ByNumber {
  public:
    explicit ByNumber(size_t most) {
        while ((size_t(1) << bits_) < 2 * most) bits_++;
        slots_.resize(size_t(1) << bits_);
    }
    T& of(int64_t number) {
        Slot& slot = slots_[place(number)];
        slot.number = number;
        return slot.what;
    }
    const T* find(int64_t number) const {
        const Slot& slot = slots_[place(number)];
        return slot.number == number ? &slot.what : nullptr;
    }

  private:
    struct Slot { int64_t number = NONE; T what{}; };
    static constexpr int64_t NONE = std::numeric_limits<int64_t>::min();
    size_t place(int64_t number) const {
        size_t at = (static_cast<uint64_t>(number) * 0x9E3779B97F4A7C15u) >> (64 - bits_);
        while (slots_[at].number != NONE && slots_[at].number != number) at = (at + 1) & (slots_.size() - 1);
        return at;
    }
    int bits_ = 4;
    std::vector<Slot> slots_;
};

void products(Table& table, const std::vector<std::pair<std::string, Optional>>& given) {
    for (const auto& [name, values] : given) {
        if (!values) continue;
        sized(*values, table.items(), name.c_str());
        const float* value = values->data();
        table.fill(name.c_str(), [=](size_t item) { return value[item]; });
        if (name != "next") continue;
        float highest = NaN;
        for (size_t item = 0; item < table.items(); item++) highest = std::fmax(highest, value[item]);
        table.fill("next_gap", [=](size_t item) { return value[item] - highest; });
        rank(table, "next_rank", [=](size_t item) { return -value[item]; });
    }
}

void nearest(Table& table, const std::vector<std::pair<std::string, Strided<float>>>& near) {
    for (const auto& [name, cosines] : near) {
        if (cosines.ndim() != 2 || static_cast<size_t>(cosines.shape(0)) != table.items() || !cosines.shape(1))
            throw py::value_error("cosines are not of the items of the list");
        const auto values = cosines.unchecked<2>();
        const py::ssize_t width = cosines.shape(1);
        const bool mean = name == "session";
        table.fill(("near_" + name).c_str(), [&](size_t item) {
            float found = mean ? 0.0f : values(item, 0);
            for (py::ssize_t at = mean ? 0 : 1; at < width; at++) {
                const float value = values(item, at);
                if (mean) found += value;
                else if (value > found || std::isnan(value)) found = value;
            }
            return mean ? found / static_cast<float>(width) : found;
        });
    }
}

void own(Table& table, const int64_t* labels, const History& history, int64_t now_ms) {
    struct Seen { float events = 0, acted = 0; size_t last = 0; };
    ByNumber<Seen> seen(history.size());
    const int64_t* of = history.labels.data();
    const uint8_t* classes = history.classes.data();
    for (size_t at = 0; at < history.size(); at++) {
        if (of[at] < 0) continue;
        Seen& one = seen.of(of[at]);
        one.events++;
        one.acted += acted(classes[at]);
        one.last = at;
    }
    const size_t events = column("own_events"), gap = column("own_gap"), places = column("own_places"),
                 kept = column("own_acted");
    for (size_t item = 0; item < table.items(); item++) {
        const Seen* found = seen.find(labels[item]);
        table.at(item, events) = found ? std::log1p(found->events) : 0.0f;
        table.at(item, kept) = found ? std::log1p(found->acted) : 0.0f;
        if (!found) continue;
        const double silent_s = std::max<int64_t>(0, now_ms - history.ts_ms.at(found->last)) / 1000.0;
        table.at(item, gap) = static_cast<float>(std::log1p(silent_s));
        table.at(item, places) = static_cast<float>(std::log1p(double(history.size() - 1 - found->last)));
    }
}

void labels_of(Table& table, const Facts& items, const Facts& events, const History& history) {
    struct Counts { float all = 0, acted = 0, session = 0, negative = 0; };
    const uint8_t* classes = history.classes.data();
    const auto add = [&](Counts& to, size_t at) {
        const bool negative = classes[at] == NEGATIVE;
        to.all += !negative;
        to.acted += acted(classes[at]);
        to.session += history.session[at] && !negative;
        to.negative += negative;
    };
    Counts total;
    const Counts none;
    for (size_t at = 0; at < history.size(); at++) add(total, at);
    const auto share = [](float count, float of) { return of > 0 ? count / of : NaN; };
    const std::string names[] = {"brand", "subclass", "category"};
    for (int which = 0; which < 3; which++) {
        const int32_t* code = events.code(which).data();
        ByNumber<Counts> by_code(history.size());
        for (size_t at = 0; at < history.size(); at++) add(by_code.of(code[at]), at);
        const std::string& name = names[which];
        const bool more = which < 2;  // categories have fewer features
        const size_t all = column(name.c_str()), session = column((name + "_session").c_str()),
                     kept = more ? column((name + "_acted").c_str()) : 0,
                     negative = more ? column((name + "_negative").c_str()) : 0;
        const int32_t* own = items.code(which).data();
        for (size_t item = 0; item < table.items(); item++) {
            if (!own[item]) continue;
            const Counts* found = by_code.find(own[item]);
            const Counts& counts = found ? *found : none;
            table.at(item, all) = share(counts.all, total.all);
            table.at(item, session) = share(counts.session, total.session);
            if (!more) continue;
            table.at(item, kept) = share(counts.acted, total.acted);
            table.at(item, negative) = std::log1p(counts.negative);
        }
    }
}

void prices(Table& table, const Facts& items, const Facts& events, const History& history, size_t recent) {
    const float *price = items.price.data(), *level = items.level.data();
    const float *paid = events.price.data(), *usual = events.level.data();
    const uint8_t* classes = history.classes.data();
    Mean last, levels, levels_acted;
    size_t taken = 0;
    for (size_t at = history.size(); at-- > 0;) {
        if (classes[at] != NEGATIVE) {
            if (taken++ < recent) last.add(paid[at]);
            levels.add(usual[at]);
        }
        if (acted(classes[at])) levels_acted.add(usual[at]);
    }
    const float middle = median(price, table.items());
    table.fill("price", [=](size_t item) { return price[item]; });
    rank(table, "price_rank", [=](size_t item) { return price[item]; });
    table.fill("price_to_list", [=](size_t item) { return price[item] - middle; });
    table.fill("price_to_recent", [&](size_t item) { return price[item] - last.value(); });
    table.fill("level", [=](size_t item) { return level[item]; });
    table.fill("level_gap", [&](size_t item) { return std::fabs(level[item] - levels.value()); });
    table.fill("level_gap_acted", [&](size_t item) { return std::fabs(level[item] - levels_acted.value()); });
}

void popularity(Table& table, const std::vector<Optional>& amounts, const py::tuple& priors) {
    if (amounts.size() != 6 || priors.size() != 3) throw py::value_error("amounts are six, priors three");
    const float viewed = priors[0].cast<float>(), liked = priors[1].cast<float>(), shown = priors[2].cast<float>();
    for (size_t at = 0; at < 6; at++) {
        if (amounts[at]) sized(*amounts[at], table.items(), "amounts");
        else if (at < 5) throw py::value_error("an amount is missing");
    }
    const auto of = [&](size_t at) { return amounts[at]->data(); };
    const float *popular = of(0), *here = of(1), *views = of(2), *carts = of(3), *purchases = of(4);
    table.fill("popular", [=](size_t item) { return popular[item]; });
    table.fill("popular_here", [=](size_t item) { return here[item]; });
    table.fill("views", [=](size_t item) { return std::log1p(views[item]); });
    table.fill("carts", [=](size_t item) { return std::log1p(carts[item]); });
    table.fill("purchases", [=](size_t item) { return std::log1p(purchases[item]); });
    table.fill("carts_per_view", [=](size_t i) { return std::log((carts[i] + liked) / (views[i] + viewed)); });
    table.fill("purchases_per_view", [=](size_t i) { return std::log((purchases[i] + liked) / (views[i] + viewed)); });
    if (!amounts[5]) return;
    const float* seen = of(5);
    table.fill("shown", [=](size_t item) { return std::log1p(seen[item]); });
    table.fill("clicks_per_shown", [=](size_t i) { return std::log((views[i] + 1.0f) / (seen[i] + shown)); });
}

void list_shares(Table& table, const Facts& items) {
    const float count = std::max<size_t>(1, table.items());
    for (int which = 0; which < 2; which++) {
        const int32_t* code = items.code(which).data();
        ByNumber<float> held(table.items());
        for (size_t item = 0; item < table.items(); item++) held.of(code[item])++;
        table.fill(which ? "list_subclass" : "list_brand",
                   [&](size_t item) { return code[item] ? *held.find(code[item]) / count : NaN; });
    }
    const float size = std::log1p(double(table.items()));
    table.fill("list_size", [=](size_t) { return size; });
}

void positions(Table& table, const int64_t* labels, const Optional& given, const History& history) {
    if (!given) return;
    sized(*given, table.items(), "positions");
    const float* place = given->data();
    table.fill("position", [=](size_t item) { return place[item]; });
    ByNumber<float> of(table.items());
    for (size_t item = 0; item < table.items(); item++) of.of(labels[item]) = place[item];
    for (size_t at = history.size(); at-- > 0;) {
        const int64_t label = history.labels.at(at);
        const float* found = label < 0 ? nullptr : of.find(label);
        if (!found) continue;
        table.fill("position_to_last", [=](size_t item) { return place[item] - *found; });
        return;
    }
}

using Products = std::vector<std::pair<std::string, Optional>>;
using Cosines = std::vector<std::pair<std::string, Strided<float>>>;

py::array_t<float> table_of(
    const Array<int64_t>& labels, const Products& given_products, const Facts& items, const std::vector<Optional>& amounts,
    const Optional& places, const History& history, const Facts& events, const Cosines& near, int64_t now_ms, size_t recent,
    const py::tuple& priors) {
    Table table(labels.shape(0));
    sized(items, table.items());
    sized(events, history.size());
    products(table, given_products);
    nearest(table, near);
    own(table, labels.data(), history, now_ms);
    labels_of(table, items, events, history);
    prices(table, items, events, history, recent);
    popularity(table, amounts, priors);
    list_shares(table, items);
    positions(table, labels.data(), places, history);
    return table.take();
}

py::array_t<float> features(
    const Array<int64_t>& labels, const Products& given_products, const py::tuple& item_facts,
    const std::vector<Optional>& amounts, const Optional& places, const Array<int64_t>& history_labels,
    const Array<uint8_t>& classes, const Array<int64_t>& ts_ms, const py::tuple& event_facts, const Cosines& near,
    int64_t now_ms, int64_t session_gap_ms, size_t recent, const py::tuple& priors) {
    if (labels.ndim() != 1 || history_labels.ndim() != 1) throw py::value_error("labels are one row");
    const History history(history_labels, classes, ts_ms, now_ms, session_gap_ms);
    return table_of(labels, given_products, facts_of(item_facts), amounts, places, history, facts_of(event_facts), near, now_ms,
                    recent, priors);
}

// What a catalogue knows of all items, by label: codes, prices, and by code the median of the log prices of a subclass.
struct Catalogue {
    Column<int32_t> codes[3];
    Column<double> price;
    Column<float> usual;

    explicit Catalogue(const py::tuple& columns) {
        if (columns.size() != 5) throw py::value_error("a catalogue has five columns");
        for (int which = 0; which < 3; which++) codes[which] = columns[which].cast<Column<int32_t>>();
        price = columns[3].cast<Column<double>>(), usual = columns[4].cast<Column<float>>();
        size_t size = price.size();
        for (const auto& of : codes) size = std::min<size_t>(size, of.size());
        size_ = size;
    }
    // Of labels [n]; none where a median is not known yet: infinite, or not there.
    std::optional<Facts> facts(const int64_t* labels, size_t count) const {
        Facts found{Array<int32_t>(count), Array<int32_t>(count), Array<int32_t>(count), Array<float>(count), Array<float>(count)};
        int32_t* to[] = {found.brand.mutable_data(), found.subclass.mutable_data(), found.category.mutable_data()};
        float *log_price = found.price.mutable_data(), *level = found.level.mutable_data();
        for (size_t at = 0; at < count; at++) {  // all of them are on their way before the first is read
            for (const auto& of : codes) __builtin_prefetch(of.data() + labels[at]);
            __builtin_prefetch(price.data() + labels[at]);
        }
        for (size_t at = 0; at < count; at++) {
            const int64_t label = labels[at];
            if (label >= int64_t(size_)) throw py::value_error("a label beyond the catalogue");
            for (int which = 0; which < 3; which++) to[which][at] = label < 0 ? 0 : codes[which].data()[label];
            const double paid = label < 0 ? NaN : price.data()[label];
            log_price[at] = paid > 0 ? static_cast<float>(std::log(paid)) : NaN;
            const int32_t code = to[1][at];
            if (code < 0) throw py::value_error("codes begin at 0");
            if (code >= usual.size() || std::isinf(usual.data()[code])) return std::nullopt;
            level[at] = log_price[at] - usual.data()[code];
        }
        return found;
    }

  private:
    size_t size_;
};

// Weights by number of an item, and the highest.
using Given = std::pair<Column<double>, double>;
class Weights {
  public:
    explicit Weights(const Given& given) : by_number_(given.first), highest_(given.second > 0 ? std::log1p(given.second) : 0) {}
    float share(int64_t number) const {
        const double own = number >= 0 && number < by_number_.size() ? by_number_.data()[number] : 0.0;
        return static_cast<float>(highest_ > 0 ? std::log1p(own) / highest_ : own);
    }
    void fetch(int64_t number) const { __builtin_prefetch(by_number_.data() + number); }

  private:
    Column<double> by_number_;
    double highest_;
};

// Products of a row in halves with all of others [n, d], four at a time; not in the order of `multiply`.
void multiply_many(const float* others, size_t count, const Half* own, size_t dim, float* found) {
    size_t at = 0;
    for (; at + 4 <= count; at += 4) {
        const float* first = others + at * dim;
        Vector sums[4][2] = {};
        size_t n = 0;
        for (; n + 16 <= dim; n += 16)
            for (size_t half = 0; half < 2; half++) {
                const Vector numbers = load(own + n + 8 * half);  // converted once for all
                for (size_t of = 0; of < 4; of++) sums[of][half] += load(first + of * dim + n + 8 * half) * numbers;
            }
        for (size_t of = 0; of < 4; of++) {
            const Vector all = sums[of][0] + sums[of][1];
            found[at + of] = ((all[0] + all[4]) + (all[1] + all[5])) + ((all[2] + all[6]) + (all[3] + all[7]));
            for (size_t left = n; left < dim; left++) found[at + of] += first[of * dim + left] * one(own + left);
        }
    }
    multiply(others + at * dim, count - at, own, dim, found + at);
}

// The last distinct labels of those events, newest first.
template <typename F> std::vector<int64_t> newest(const History& history, size_t most, F wanted) {
    std::vector<int64_t> found;
    for (size_t at = history.size(); at-- > 0 && found.size() < most;) {
        const int64_t label = history.labels.data()[at];
        if (label < 0 || !wanted(at) || std::find(found.begin(), found.end(), label) != found.end()) continue;
        found.push_back(label);
    }
    return found;
}

// As `features`, gathered from columns by label and number: vectors in halves, what popularity counts at all and at the
// location, and by kind for each class. None where something has to be looked up first.
py::object live_features(
    const Array<int64_t>& labels, const Column<uint16_t>& halves, const Optional& users, const Optional& delta,
    const Optional& negative, const py::tuple& columns, const Column<int64_t>& numbers, const Given& popular, const Given& here,
    const std::vector<std::vector<Column<double>>>& by_class, const Optional& shown, const Array<int64_t>& history_labels,
    const Array<uint8_t>& classes, const Array<int64_t>& ts_ms, int64_t now_ms, int64_t session_gap_ms, size_t recent,
    const py::tuple& priors) {
    if (labels.ndim() != 1 || history_labels.ndim() != 1 || numbers.ndim() != 1) throw py::value_error("labels are one row");
    if (halves.ndim() != 2 || by_class.size() != 3) throw py::value_error("vectors are a table, and classes three");
    const size_t count = labels.size(), dim = halves.shape(1), size = std::min(halves.shape(0), numbers.shape(0));
    if ((users && (users->ndim() != 2 || users->shape(0) != 2 || size_t(users->shape(1)) != dim)) ||
        (delta && (delta->ndim() != 1 || size_t(delta->size()) != dim)))
        throw py::value_error("users are not as wide as vectors");
    Array<int64_t> events_of(history_labels.size());
    for (py::ssize_t at = 0; at < history_labels.size(); at++) {  // an item that came this moment has no row yet
        const int64_t label = history_labels.data()[at];
        if (label < -1) throw py::value_error("labels begin at 0, and -1 is none");
        events_of.mutable_data()[at] = label < int64_t(size) ? label : -1;
    }
    for (size_t item = 0; item < count; item++) {
        const int64_t label = labels.data()[item];
        if (label < 0 || label >= int64_t(size)) throw py::value_error("a label beyond the vectors");
        __builtin_prefetch(numbers.data() + label);
    }
    const History history(events_of, classes, ts_ms, now_ms, session_gap_ms);
    const Catalogue catalogue(columns);
    const auto items = catalogue.facts(labels.data(), count);
    const auto events = catalogue.facts(events_of.data(), history.size());
    if (!items || !events) return py::none();

    std::vector<Optional> amounts(5);
    float* amount[5];
    for (size_t at = 0; at < 5; at++) amounts[at] = Array<float>(count), amount[at] = amounts[at]->mutable_data();
    const Weights everywhere(popular), there(here);
    for (size_t item = 0; item < count; item++) {
        const int64_t number = numbers.data()[labels.data()[item]];
        if (number < -1) return py::none();
        everywhere.fetch(number), there.fetch(number);
        for (const auto& of : by_class)
            for (const auto& counts : of) __builtin_prefetch(counts.data() + number);
    }
    for (size_t item = 0; item < count; item++) {
        const int64_t number = numbers.data()[labels.data()[item]];
        amount[0][item] = everywhere.share(number), amount[1][item] = there.share(number);
        for (size_t of = 0; of < 3; of++) {
            double sum = 0;
            for (const auto& counts : by_class[of]) sum += number >= 0 && number < counts.size() ? counts.data()[number] : 0.0;
            amount[2 + of][item] = static_cast<float>(sum);
        }
    }
    amounts.push_back(shown);

    const uint8_t* of = classes.data();
    const auto looked = newest(history, recent, [of](size_t at) { return of[at] != NEGATIVE; });
    const auto liked = newest(history, recent, [of](size_t at) { return acted(of[at]); });
    const size_t session =
        newest(history, recent, [&](size_t at) { return of[at] != NEGATIVE && history.session[at]; }).size();
    std::vector<float> others;  // what candidates are multiplied with: the user, the offset, and items of the window
    if (users) others.insert(others.end(), users->data(), users->data() + 2 * dim);
    if (delta) others.insert(others.end(), delta->data(), delta->data() + dim);
    const auto row = [&](int64_t label) { return halves.data() + label * dim; };
    for (const auto& labels_of : {looked, liked})
        for (const int64_t label : labels_of)
            for (size_t at = 0; at < dim; at++) others.push_back(one(row(label) + at));
    const size_t width = dim ? others.size() / dim : 0, near_at = (users ? 2 : 0) + (delta ? 1 : 0);
    Column<float> found({count, width});
    float* cells = found.mutable_data();
    for (size_t item = 0; item < count; item++) {
        if (item + 1 < count) fetch(row(labels.data()[item + 1]), dim);
        multiply_many(others.data(), width, row(labels.data()[item]), dim, cells + item * width);
    }
    Products products;
    const auto product = [&](const char* name, size_t at) {
        Array<float> own(count);
        for (size_t item = 0; item < count; item++) own.mutable_data()[item] = cells[item * width + at];
        products.emplace_back(name, own);
    };
    if (users) product("next", 0), product("general", 1);
    if (delta) product("context", users ? 2 : 0);
    Array<float> none(count);
    std::fill(none.mutable_data(), none.mutable_data() + count, 0.0f);
    products.emplace_back("negative", negative ? *negative : none);
    Cosines near;
    const auto part = [&](const char* name, size_t from, size_t many) {
        const std::vector<py::ssize_t> shape{py::ssize_t(count), py::ssize_t(many)};
        const std::vector<py::ssize_t> strides{py::ssize_t(width * sizeof(float)), py::ssize_t(sizeof(float))};
        if (many) near.emplace_back(name, Strided<float>(shape, strides, cells + from, found));
    };
    part("last", near_at, std::min<size_t>(1, looked.size()));
    part("recent", near_at, looked.size());
    part("session", near_at, session);
    part("acted", near_at + looked.size(), liked.size());
    return table_of(labels, products, *items, amounts, std::nullopt, history, *events, near, now_ms, recent, priors);
}

// What a ranker's scores [m] add to first-stage scores [m, q], as `second_stage.part_of`; None where they are no numbers or
// all alike.
py::object part(const Array<float>& scores, const Array<double>& first, double least) {
    if (first.ndim() != 2) throw py::value_error("first-stage scores are a table");
    sized(scores, first.shape(0), "scores");
    const size_t count = first.shape(0), slots = first.shape(1);
    const float* of = scores.data();
    if (!std::all_of(of, of + count, [](float score) { return std::isfinite(score); })) return py::none();
    if (std::all_of(of, of + count, [of](float score) { return score == of[0]; })) return py::none();
    const auto spread = [count](const auto& value) {
        double mean = 0, square = 0;
        for (size_t at = 0; at < count; at++) mean += value(at) / count;
        for (size_t at = 0; at < count; at++) square += (value(at) - mean) * (value(at) - mean) / count;
        return std::pair{mean, std::sqrt(square)};
    };
    const auto [mean, deviation] = spread([of](size_t at) { return double(of[at]); });
    py::array_t<double> found({count, slots});
    for (size_t slot = 0; slot < slots; slot++) {
        const double* own = first.data() + slot;
        const auto [middle, width] = spread([=](size_t at) { return own[at * slots]; });
        for (size_t at = 0; at < count; at++)
            found.mutable_data()[at * slots + slot] =
                (of[at] - mean) / deviation * std::max(width, least) + middle - own[at * slots];
    }
    return std::move(found);
}

// As `network.Scaling`: the places of values among those of training, and what the network sees of them.
class Scaling {
  public:
    // Values of all features with their places, those of each up to its end; one without any is always the same.
    Scaling(const Array<float>& values, const Array<double>& places, const Array<int64_t>& ends) {
        sized(values, values.size(), "values");
        sized(places, values.size(), "places");
        int64_t begin = 0;
        for (py::ssize_t at = 0; at < ends.size(); at++) {
            const int64_t end = ends.at(at);
            if (end < begin || end > values.size()) throw py::value_error("places do not fit their features");
            columns_.emplace_back(values.data() + begin, places.data() + begin, end - begin);
            begin = end;
        }
    }

    size_t size() const { return columns_.size(); }

    // Of one list [items, F]: places, the same less the list's mean, and what is missing [items, 3 F].
    py::array_t<float> inputs(const Array<float>& features) const {
        if (features.ndim() != 2 || static_cast<size_t>(features.shape(1)) != size())
            throw py::value_error("features are not those of the scaling");
        py::array_t<float> found({static_cast<size_t>(features.shape(0)), 3 * size()});
        std::vector<size_t> columns(size());
        std::iota(columns.begin(), columns.end(), 0);
        fill(features, columns, found.mutable_data());
        return found;
    }
    // The same of some columns of features [items, more].
    void fill(const Array<float>& features, const std::vector<size_t>& columns, float* found) const {
        const size_t count = size(), items = features.shape(0), width = features.shape(1);
        const float* cells = features.data();
        std::vector<float> places(count * items);  // [F, items]
        std::vector<double> means(count);
        for (size_t at = 0; at < count; at++) {
            float sum = 0;
            size_t known = 0;
            float* to = &places[at * items];
            for (size_t item = 0; item < items; item++) {
                const float value = cells[item * width + columns[at]];
                to[item] = std::isnan(value) ? NaN : columns_[at].place(value);
                if (std::isnan(value)) continue;
                known++;
                sum += to[item];
            }
            means[at] = static_cast<double>(sum) / std::max<size_t>(1, known);
        }
        for (size_t item = 0; item < items; item++) {
            float* row = found + item * 3 * count;
            for (size_t at = 0; at < count; at++) {
                const float place = places[at * items + item];
                const bool missing = std::isnan(place);
                row[at] = missing ? 0.0f : place;
                row[count + at] = missing ? 0.0f : static_cast<float>(place - means[at]);
                row[2 * count + at] = missing;
            }
        }
    }

  private:
    // Straight lines between rising values, as `np.interp`; beside them it is the first or the last place.
    class Column {
      public:
        Column(const float* values, const double* places, size_t size)
            : values_(values, values + size), places_(places, places + size) {
            if (!size) return;
            for (size_t at = 0; at + 1 < size; at++)
                slopes_.push_back((places_[at + 1] - places_[at]) / (values_[at + 1] - double(values_[at])));
            cells_ = CELLS / (static_cast<double>(values_.back()) - values_.front());
            size_t at = 0;
            for (size_t cell = 0; cell < CELLS; cell++) {
                while (at + 1 < size && cell_of(values_[at + 1]) < cell) at++;
                first_.push_back(static_cast<uint16_t>(at));
            }
        }
        float place(float value) const {
            if (values_.empty()) return 0;
            if (value <= values_.front()) return static_cast<float>(places_.front());
            if (value >= values_.back()) return static_cast<float>(places_.back());
            size_t at = first_[cell_of(value)];
            while (values_[at + 1] <= value) at++;
            return static_cast<float>(slopes_[at] * (value - double(values_[at])) + places_[at]);
        }

      private:
        static constexpr size_t CELLS = 512;  // of equal width, each with the first value to look at
        size_t cell_of(float value) const {
            return std::min<size_t>(CELLS - 1, static_cast<size_t>((static_cast<double>(value) - values_.front()) * cells_));
        }
        std::vector<float> values_;
        std::vector<double> places_, slopes_;
        double cells_ = 0;
        std::vector<uint16_t> first_;
    };

    std::vector<Column> columns_;
};

typedef int32_t Ints __attribute__((vector_size(32)));

// e^x, to about the last digit, of numbers from −87 to 88; beyond them it is that of the bound (Cody and Waite, 1980).
inline Vector exponential(Vector x) {
    const Vector least = Vector{} - 87.0f, most = Vector{} + 88.0f, shift = Vector{} + 12582912.0f;  // 1.5 · 2^23 rounds
    x = x > most ? most : x < least ? least : x;
    const Vector whole = (x * 1.44269504f + shift) - shift, rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Vector found = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    for (const float term : {8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) found = found * rest + term;
    found = found * rest * rest + rest + 1.0f;
    const Ints power = (__builtin_convertvector(whole, Ints) + 127) << 23;
    return found * reinterpret_cast<const Vector&>(power);
}

// As `network.Network`, of one list.
class Network {
  public:
    Network(const Scaling& scaling, const std::vector<std::pair<Array<float>, Array<float>>>& layers) : scaling_(scaling) {
        size_t in = 3 * scaling.size();
        for (const auto& [weights, bias] : layers) {
            if (weights.ndim() != 2 || size_t(weights.shape(0)) != in) throw py::value_error("layers do not fit each other");
            const size_t out = weights.shape(1), padded = (out + LANES - 1) / LANES * LANES;
            sized(bias, out, "bias");
            Layer& layer = layers_.emplace_back(Layer{in, out, padded, {}, {}});
            layer.weights.assign(in * padded, 0.0f), layer.bias.assign(padded, 0.0f);
            for (size_t at = 0; at < in; at++)
                std::copy_n(weights.data() + at * out, out, layer.weights.begin() + at * padded);
            std::copy_n(bias.data(), out, layer.bias.begin());
            in = out;
        }
        if (layers.empty() || in != 1) throw py::value_error("a network gives one score");
    }

    // Of items with features [m, more], of which it sees some columns: [m].
    py::array_t<float> scores(const Array<float>& features, const std::vector<size_t>& columns) const {
        if (features.ndim() != 2 || columns.size() != scaling_.size()) throw py::value_error("features are not the network's");
        for (const size_t at : columns)
            if (at >= size_t(features.shape(1))) throw py::value_error("a column that is not there");
        const size_t items = features.shape(0), width = 3 * scaling_.size();
        std::vector<float> rows(items * width), after;
        scaling_.fill(features, columns, rows.data());
        size_t stride = width;
        for (size_t at = 0; at < layers_.size(); at++) {
            after.resize(items * layers_[at].padded);
            layers_[at].apply(rows.data(), items, stride, after.data());
            if (at + 1 < layers_.size()) gelu(after);
            rows.swap(after);
            stride = layers_[at].padded;
        }
        py::array_t<float> found(items);
        for (size_t item = 0; item < items; item++) found.mutable_data()[item] = rows[item * stride];
        return found;
    }

  private:
    static constexpr size_t LANES = 8;
    struct Layer {
        size_t in, out, padded;
        std::vector<float> weights, bias;  // [in, padded], [padded]

        // Of rows [n, in], which lie `stride` apart: [n, padded].
        void apply(const float* rows, size_t count, size_t stride, float* found) const {
            size_t at = 0;
            for (; at + 4 <= count; at += 4) some<4>(rows + at * stride, stride, found + at * padded);
            for (; at < count; at++) some<1>(rows + at * stride, stride, found + at * padded);
        }
        template <size_t ROWS> void some(const float* rows, size_t stride, float* found) const {
            size_t from = 0;
            for (; from + 2 * LANES <= padded; from += 2 * LANES) part<ROWS, 2>(rows, stride, from, found);
            for (; from < padded; from += LANES) part<ROWS, 1>(rows, stride, from, found);
        }
        // So many rows and lanes at once as there are registers for: a weight is loaded once for all of the rows.
        template <size_t ROWS, size_t N> void part(const float* rows, size_t stride, size_t from, float* found) const {
            Vector sums[ROWS][N];
            for (auto& row : sums)
                for (size_t n = 0; n < N; n++) row[n] = load(&bias[from + n * LANES]);
            for (size_t at = 0; at < in; at++) {
                Vector numbers[N];
                for (size_t n = 0; n < N; n++) numbers[n] = load(&weights[at * padded + from + n * LANES]);
                for (size_t row = 0; row < ROWS; row++)
                    for (size_t n = 0; n < N; n++) sums[row][n] += numbers[n] * rows[row * stride + at];
            }
            for (size_t row = 0; row < ROWS; row++)
                for (size_t n = 0; n < N; n++)
                    reinterpret_cast<Vector&>(found[row * padded + from + n * LANES]) = sums[row][n];
        }
    };
    // x / (1 + e^(−2 √(2/π) (x + 0.044715 x³))), which is 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))).
    static void gelu(std::vector<float>& rows) {
        for (size_t at = 0; at < rows.size(); at += LANES) {
            Vector& x = reinterpret_cast<Vector&>(rows[at]);
            x = x / (1.0f + exponential(x * (x * x * 0.044715f + 1.0f) * -1.5957691216f));
        }
    }

    Scaling scaling_;
    std::vector<Layer> layers_;
};

}  // namespace

PRODUCTS_END

PYBIND11_MODULE(_native, module) {
    if (!CAN_MULTIPLY) throw py::import_error("this processor lacks AVX2, FMA or F16C");
    module.doc() = "The second stage's features and inputs, as index.ranking.features and index.ranking.network.";
    module.attr("NAMES") = py::tuple(py::cast(NAMES));
    module.def("features", &features);
    module.def("live_features", &live_features);
    module.def("part", &part);
    py::class_<Scaling>(module, "Scaling")
        .def(py::init<const Array<float>&, const Array<double>&, const Array<int64_t>&>())
        .def("inputs", &Scaling::inputs);
    py::class_<Network>(module, "Network")
        .def(py::init<const Scaling&, const std::vector<std::pair<Array<float>, Array<float>>>&>())
        .def("scores", &Network::scores);
}
