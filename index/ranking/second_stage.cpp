// The features and the network's inputs of one list, as `features.py` and `network.py` compute them: same formulas, same
// meaning of NaN. Both of those stay, as the oracle of the tests and for machines without a compiler.
//
// Every array is checked for its shape before it is read. No pointer outlives a call, and nothing is kept between calls.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace py = pybind11;

namespace {

constexpr float NaN = std::numeric_limits<float>::quiet_NaN();

template <typename T> using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;
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

py::array_t<float> features(
    const Array<int64_t>& labels, const std::vector<std::pair<std::string, Optional>>& given_products,
    const py::tuple& item_facts, const std::vector<Optional>& amounts, const Optional& places,
    const Array<int64_t>& history_labels, const Array<uint8_t>& classes, const Array<int64_t>& ts_ms,
    const py::tuple& event_facts, const std::vector<std::pair<std::string, Strided<float>>>& near, int64_t now_ms,
    int64_t session_gap_ms, size_t recent, const py::tuple& priors) {
    if (labels.ndim() != 1 || history_labels.ndim() != 1) throw py::value_error("labels are one row");
    const History history(history_labels, classes, ts_ms, now_ms, session_gap_ms);
    const Facts items = facts_of(item_facts), events = facts_of(event_facts);
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

    // Of one list [items, F]: places, the same less the list's mean, and what is missing [items, 3 F].
    py::array_t<float> inputs(const Array<float>& features) const {
        const size_t count = columns_.size();
        if (features.ndim() != 2 || static_cast<size_t>(features.shape(1)) != count)
            throw py::value_error("features are not those of the scaling");
        const size_t items = features.shape(0);
        const float* cells = features.data();
        py::array_t<float> found({items, 3 * count});
        float* row = found.mutable_data();
        std::fill(row, row + items * 3 * count, 0.0f);
        for (size_t at = 0; at < count; at++) {
            float sum = 0;
            size_t known = 0;
            for (size_t item = 0; item < items; item++) {
                const float value = cells[item * count + at];
                float* to = row + item * 3 * count + at;
                if (std::isnan(value)) {
                    to[2 * count] = 1;
                    continue;
                }
                known++;
                *to = columns_[at].place(value);
                sum += *to;
            }
            const double mean = static_cast<double>(sum) / std::max<size_t>(1, known);
            for (size_t item = 0; item < items; item++) {
                float* to = row + item * 3 * count + at;
                if (!to[2 * count]) to[count] = static_cast<float>(*to - mean);
            }
        }
        return found;
    }

  private:
    // Straight lines between rising values, as `np.interp`; beside them it is the first or the last place.
    class Column {
      public:
        Column(const float* values, const double* places, size_t size)
            : values_(values, values + size), places_(places, places + size) {
            if (!size) return;
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
            const double low = values_[at], slope = (places_[at + 1] - places_[at]) / (values_[at + 1] - low);
            return static_cast<float>(slope * (value - low) + places_[at]);
        }

      private:
        static constexpr size_t CELLS = 512;  // of equal width, each with the first value to look at
        size_t cell_of(float value) const {
            return std::min<size_t>(CELLS - 1, static_cast<size_t>((static_cast<double>(value) - values_.front()) * cells_));
        }
        std::vector<float> values_;
        std::vector<double> places_;
        double cells_ = 0;
        std::vector<uint16_t> first_;
    };

    std::vector<Column> columns_;
};

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "The second stage's features and inputs, as index.ranking.features and index.ranking.network.";
    module.attr("NAMES") = py::tuple(py::cast(NAMES));
    module.def("features", &features);
    py::class_<Scaling>(module, "Scaling")
        .def(py::init<const Array<float>&, const Array<double>&, const Array<int64_t>&>())
        .def("inputs", &Scaling::inputs);
}
