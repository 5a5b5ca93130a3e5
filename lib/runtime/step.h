// One step of the model; see cpu.cpp, which includes this file.
#pragma once

class Engine {
 public:
  Engine(const Settings& s, const Layer* layers, Matrix embedding, Matrix head, const float* norm)
      : s_(s), layers_(layers, layers + s.layers), embedding_(embedding), head_(head), norm_(norm), team_(s.threads),
        mixer_(s.heads, s.key_heads, s.size, s.threads) {
    room_.resize(s.threads);
  }

  void step(const Cache& cache, int rows, const int32_t* tokens, const int32_t* slots, const int32_t* positions,
            int wanted, const int32_t* which, float* logits) {
    shape(rows);
    mixer_.plan(rows, slots, positions);
    start();
    each(rows, [&](int row) {
      float* x = x_.data() + (long)row * s_.hidden;
      look_up(embedding_, tokens[row], x);
      for (int i = 0; i < s_.hidden; i++) x[i] *= s_.embedding_scale;
    });
    lap(EMBED);
    for (int i = 0; i < s_.layers; i++) layer(layers_[i], i, cache, rows, slots, positions);
    if (wanted) project(wanted, which, logits);
  }

  void profile(int on, double* seconds) {
    for (int i = 0; i < PHASES; i++) seconds[i] = seconds_[i], seconds_[i] = 0;
    seconds[PHASES] = team_.waited() - waited_;
    waited_ = team_.waited();
    timed_ = team_.timed = on;
  }

 private:
  long width() const { return (long)(s_.heads + 2 * s_.key_heads) * s_.size; }  // of queries, keys and values

  void shape(int rows) {
    const auto grow = [](std::vector<float>& v, size_t size) {
      if (v.size() < size + 64) v.resize(size + 64);  // quantizing reads up to 63 floats beyond a row
    };
    grow(x_, (size_t)rows * s_.hidden);
    grow(qkv_, (size_t)rows * width());
    for (auto* each : {&mixed_, &gates_, &changed_}) grow(*each, (size_t)rows * s_.heads * s_.size);
    grow(inner_, (size_t)rows * s_.intermediate);
    grow(added_, (size_t)rows * s_.hidden);
    for (auto& each : room_) grow(each.norm, s_.hidden);
  }

  // body(row) for every row; rows in panels, so that no two threads write into one
  template <class Body> void each(int rows, Body&& body) {
    team_.run((rows + WIDEST - 1) / WIDEST, [&](int panel, int thread) {
      for (int row = panel * WIDEST; row < std::min(rows, (panel + 1) * WIDEST); row++) {
        if constexpr (std::is_invocable_v<Body, int, int>) body(row, thread);
        else body(row);
      }
    });
  }

  void normalize(const float* w, int rows, std::initializer_list<const Matrix*> readers) {
    in_.shape(rows, s_.hidden, readers);
    each(rows, [&](int row, int thread) {
      float* y = room_[thread].norm.data();
      rms_norm(x_.data() + (long)row * s_.hidden, w, y, s_.hidden, s_.eps);
      in_.take(row, y);
    });
    lap(NORM);
  }

  void prepare(const std::vector<float>& from, int columns, int rows, const Matrix& reader) {
    in_.shape(rows, columns, {&reader});
    each(rows, [&](int row) { in_.take(row, from.data() + (long)row * columns); });
    lap(NORM);
  }

  // x += W (what `in_` holds), normalized before it is added where there is a norm for it
  void add(const Matrix& w, const float* norm, int rows) {
    multiply(team_, in_, {Product{&w, norm ? added_.data() : x_.data(), s_.hidden, !norm}});
    if (!norm) return;
    each(rows, [&](int row, int thread) {
      float *y = room_[thread].norm.data(), *x = x_.data() + (long)row * s_.hidden;
      rms_norm(added_.data() + (long)row * s_.hidden, norm, y, s_.hidden, s_.eps);
      for (int i = 0; i < s_.hidden; i++) x[i] += y[i];
    });
  }

  void layer(const Layer& l, int index, const Cache& cache, int rows, const int32_t* slots, const int32_t* positions) {
    float* q = qkv_.data();
    float *k = q + s_.heads * s_.size, *v = k + s_.key_heads * s_.size;
    normalize(l.first_norm, rows, {&l.query, &l.key, &l.value, l.head_gate.rows ? &l.head_gate : &l.query});
    multiply(team_, in_, {Product{&l.query, q, width()}, Product{&l.key, k, width()}, Product{&l.value, v, width()}});
    if (l.head_gate.rows) multiply(team_, in_, {Product{&l.head_gate, gates_.data(), l.head_gate.rows}});
    lap(QKV);
    place(l, index, cache, rows, slots, positions);
    mixer_.mix(team_, cache, index, l.window, slots, positions, q, width(), mixed_.data());
    if (l.head_gate.rows) gate(l.head_gate.rows / s_.heads, rows);
    if (l.head_layers) change(l.head_layers, rows);
    lap(ATTENTION);
    prepare(l.head_layers ? changed_ : mixed_, s_.heads * s_.size, rows, l.output);
    add(l.output, l.attended_norm, rows);
    lap(OUTPUT);
    normalize(l.second_norm, rows, {&l.gate, &l.up});
    multiply(team_, in_, {Product{&l.gate, inner_.data(), s_.intermediate, false, &l.up, s_.gelu != 0}});
    lap(MLP);
    prepare(inner_, s_.intermediate, rows, l.down);
    add(l.down, l.fed_norm, rows);
    lap(DOWN);
  }

  // Rotate queries and keys, and put keys and values into the cache
  void place(const Layer& l, int index, const Cache& cache, int rows, const int32_t* slots, const int32_t* positions) {
    const long table = l.rotation * cache.capacity;
    each(rows, [&](int row) {
      float* q = qkv_.data() + row * width();
      const long at = (table + positions[row]) * (s_.rotated / 2);
      for (int h = 0; h < s_.heads + s_.key_heads; h++) {
        float* head = q + h * s_.size;
        const bool key = h >= s_.heads;
        const float* w = key ? l.key_norm : l.query_norm;
        if (w) rms_norm(head, w, head, s_.size, s_.eps);
        rotate(head, cache.cosine + at, cache.sine + at, s_.rotated);
        if (!key)
          for (int i = 0; i < s_.size; i++) head[i] *= s_.query_scale;
        if (!key && cache.bits == 4) turn(head, s_.size);
      }
      for (int h = 0; h < s_.key_heads; h++) {
        float* key = q + (s_.heads + h) * s_.size;
        const Head to = head_of(cache, index, slots[row], h, s_.key_heads, s_.size);
        keep(cache.bits, key, key + s_.key_heads * s_.size, to, positions[row], s_.size);
      }
    });
  }

  // What the heads have read, times the sigmoid of `each` gates a head: one, or one for each of its numbers
  void gate(int each_head, int rows) {
    each(rows, [&](int row) {
      float* x = mixed_.data() + (long)row * s_.heads * s_.size;
      const float* g = gates_.data() + (long)row * s_.heads * each_head;
      for (int h = 0; h < s_.heads; h++, x += s_.size, g += each_head)
        for (int i = 0; i < s_.size; i += 16) {
          const F open = each_head == 1 ? set1(*g) : load(g + i);
          store(x + i, divide(load(x + i), ::add(set1(1), exponential(sub(set1(0), open)))));
        }
    });
  }

  // changed = φ(W mixed), plus mixed with the residual, head by head
  void change(const Matrix* layers, int rows) {
    const long stride = (long)s_.heads * s_.size;
    team_.run(s_.heads, [&](int h, int thread) {
      const Matrix& w = layers[h];
      Prepared& in = room_[thread].in;
      const float* x = mixed_.data() + (long)h * s_.size;
      float* y = changed_.data() + (long)h * s_.size;
      in.shape(rows, s_.size, {&w});
      for (int row = 0; row < rows; row++) in.take(row, x + row * stride);
      run_tiles(Product{&w, y, stride}, in.of(w), 0, tiles(w));
      for (int row = 0; row < rows; row++, x += stride, y += stride)
        for (int i = 0; i < s_.size; i += 16) {
          const F found = bent(load(y + i), s_.head_bend);
          store(y + i, s_.head_residual ? ::add(load(x + i), found) : found);
        }
    });
  }

  void project(int wanted, const int32_t* which, float* logits) {
    in_.shape(wanted, s_.hidden, {&head_});
    each(wanted, [&](int row, int thread) {
      float* y = room_[thread].norm.data();
      rms_norm(x_.data() + (long)which[row] * s_.hidden, norm_, y, s_.hidden, s_.eps);
      in_.take(row, y);
    });
    lap(NORM);
    multiply(team_, in_, {Product{&head_, logits, s_.vocabulary}});
    lap(HEAD);
  }

  void start() {
    if (timed_) before_ = Clock::now();
  }
  void lap(Phase phase) {
    if (!timed_) return;
    const auto now = Clock::now();
    seconds_[phase] += std::chrono::duration<double>(now - before_).count();
    before_ = now;
  }

  struct Room {
    std::vector<float> norm;
    Prepared in;
  };
  const Settings s_;
  const std::vector<Layer> layers_;
  const Matrix embedding_, head_;
  const float* norm_;
  Team team_;
  Mixer mixer_;
  Prepared in_;
  std::vector<Room> room_;
  std::vector<float> x_, qkv_, mixed_, gates_, changed_, inner_, added_;
  bool timed_ = false;
  double seconds_[PHASES] = {}, waited_ = 0;
  Clock::time_point before_;
};
