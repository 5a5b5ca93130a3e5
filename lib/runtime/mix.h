// What every head reads: queries of neighbouring rows together, long contexts in parts that threads share.
#pragma once
#include "attention.h"
#include "team.h"

class Mixer {
 public:
  Mixer(int heads, int key_heads, int size, int threads)
      : shared_(heads / key_heads), key_heads_(key_heads), heads_(heads), size_(size), room_(threads) {}

  // Which rows are attended to together: neighbours of one slot, as many as fit.
  void plan(int rows, const int32_t* slots, const int32_t* positions) {
    tasks_.clear();
    const int most = std::max(1, AT_ONCE / shared_);
    longest_ = 0;
    for (int row = 0; row < rows; row++) {
      longest_ = std::max<long>(longest_, positions[row] + 1);
      Task* last = tasks_.empty() ? nullptr : &tasks_.back();
      if (last && last->count < most && slots[last->first] == slots[row]) last->count++;
      else tasks_.push_back({row, 1});
    }
    const size_t need = AT_ONCE * (size_ + PART + 2 * Partial::stride(size_));
    for (auto& each : room_)
      if (each.size() < need) each.resize(need);
  }

  // out [rows, heads · size] = softmax(q Kᵀ) V; q: the queries of a row, `stride` floats from one row to the next
  void mix(Team& team, const Cache& cache, int layer, int window, const int32_t* slots, const int32_t* positions,
           const float* q, long stride, float* out) {
    const long parts = (longest_ + PART - 1) / PART;
    const int heads = (int)tasks_.size() * key_heads_;
    // the order of additions is the same either way
    const bool split = parts > 1 && team.size() > 1 && heads < 4 * team.size() && heads * parts < 65536;
    const auto own = [&](int chunk) { return Own{tasks_[chunk / key_heads_], chunk % key_heads_, layer, window}; };
    const Rows rows{cache, slots, positions, q, stride, out};
    if (!split) {
      team.run(heads, [&](int chunk, int thread) { each_group(own(chunk), rows, thread, 0, parts, nullptr); });
      return;
    }
    const long size = std::max(AT_ONCE, shared_) * Partial::stride(size_);
    if ((long)partials_.size() < heads * parts * size) partials_.resize(heads * parts * size);
    team.run((int)(heads * parts), [&](int chunk, int thread) {
      const long part = chunk % parts;
      each_group(own((int)(chunk / parts)), rows, thread, part, part + 1, partials_.data() + chunk * size);
    });
    for (int head = 0; head < heads; head++) join(own(head), rows, parts, partials_.data() + head * parts * size, size);
  }

 private:
  struct Task {  // queries of neighbouring rows of one slot
    int first, count;
  };
  struct Own {
    Task task;
    int head, layer, window;
  };
  struct Rows {
    const Cache& cache;
    const int32_t *slots, *positions;
    const float* q;
    long stride;
    float* out;
  };

  Query query(const Own& own, const Rows& rows, int i) const {
    const int row = own.task.first + i / shared_, head = own.head * shared_ + i % shared_;
    const long end = rows.positions[row] + 1, begin = own.window ? std::max<long>(0, end - own.window) : 0;
    return {rows.q + row * rows.stride + head * size_, rows.out + ((long)row * heads_ + head) * size_, begin, end};
  }

  // The queries of a task and key head, as many at once as fit, over some parts. What they read is finished, or goes to
  // `found`, where the parts are several threads'.
  void each_group(const Own& own, const Rows& rows, int thread, long part, long end, float* found) {
    const long stride = Partial::stride(size_);
    float *room = room_[thread].data(), *before = room + AT_ONCE * (size_ + PART), *now = before + AT_ONCE * stride;
    const Head head = head_of(rows.cache, own.layer, rows.slots[own.task.first], own.head, key_heads_, size_);
    const int all = own.task.count * shared_;
    for (int first = 0; first < all; first += AT_ONCE) {
      const int count = std::min(AT_ONCE, all - first);
      Query queries[AT_ONCE];
      for (int i = 0; i < count; i++) queries[i] = query(own, rows, first + i);
      float* sum = found ? found + first * stride : before;
      for (int i = 0; i < count; i++) ((Partial*)(sum + i * stride))->total = 0;
      for (long p = part; p < end; p++) {
        if (!any(queries, count, p)) continue;
        read(rows.cache.bits, count, queries, head, p, room, now);
        for (int i = 0; i < count; i++) merge((Partial*)(sum + i * stride), (const Partial*)(now + i * stride));
      }
      if (!found)
        for (int i = 0; i < count; i++) finish((const Partial*)(sum + i * stride), queries[i].out);
    }
  }

  static bool any(const Query* queries, int count, long part) {
    long first = queries[0].first, last = queries[0].last;
    for (int i = 1; i < count; i++) first = std::min(first, queries[i].first), last = std::max(last, queries[i].last);
    return first < (part + 1) * PART && last > part * PART;
  }

  void read(int bits, int count, const Query* queries, const Head& head, long part, float* room, float* found) const {
    const long from = part * PART, to = from + PART;
    if (bits == 16) read_part<16>(count, queries, head, size_, from, to, room, found);
    else if (bits == 8) read_part<8>(count, queries, head, size_, from, to, room, found);
    else read_part<4>(count, queries, head, size_, from, to, room, found);
  }

  void join(const Own& own, const Rows& rows, long parts, float* found, long size) const {
    const long stride = Partial::stride(size_);
    for (int i = 0; i < own.task.count * shared_; i++) {
      for (long part = 1; part < parts; part++)
        merge((Partial*)(found + i * stride), (const Partial*)(found + part * size + i * stride));
      finish((const Partial*)(found + i * stride), query(own, rows, i).out);
    }
  }

  // Add what was read of the next part; a part that a query does not see at all has a total of 0.
  void merge(Partial* sum, const Partial* next) const {
    if (next->total == 0) return;
    if (sum->total == 0) {
      std::memcpy((void*)sum, next, Partial::stride(size_) * sizeof(float));
      return;
    }
    const float top = std::max(sum->highest, next->highest);
    const F old = exponential(set1(sum->highest - top)), more = exponential(set1(next->highest - top));
    float totals[16];
    store(totals, fma(set1(next->total), more, mul(set1(sum->total), old)));
    sum->highest = top, sum->total = totals[0];
    for (int i = 0; i < size_; i += 16)
      store(sum->sums + i, fma(load(next->sums + i), more, mul(load(sum->sums + i), old)));
  }

  void finish(const Partial* sum, float* out) const {
    for (int i = 0; i < size_; i += 16) store(out + i, divide(load(sum->sums + i), set1(sum->total)));
  }

  const int shared_, key_heads_, heads_, size_;
  std::vector<Task> tasks_;
  std::vector<std::vector<float>> room_;
  std::vector<float> partials_;
  long longest_ = 0;
};
