// The whole step of a model in one call: tokens in, logits out, no allocation once it has run.
//
// A step takes rows: a token each, with the sequence ("slot") and the position that it stands at. One row is a decoding
// step, many rows of one slot are a prompt or a draft to verify, rows of many slots are a batch. Nothing is padded.
#include <initializer_list>
#include <type_traits>

#include "mix.h"

using Clock = std::chrono::steady_clock;
enum Phase { EMBED, NORM, QKV, ATTENTION, OUTPUT, MLP, DOWN, HEAD, PHASES };

struct Layer {
  Matrix query, key, value, output, gate, up, down;
  // the last four may be null; the last two are applied to what attention and MLP add
  const float *first_norm, *second_norm, *query_norm, *key_norm, *attended_norm, *fed_norm;
  int32_t window, rotation;  // how many positions a query sees (0: all); which rotary embedding
  Matrix head_gate;          // without rows where there is none; [heads or heads * size, hidden]
  const Matrix* head_layers;  // [heads], or null
};

struct Settings {
  int32_t hidden, heads, key_heads, size, intermediate, layers, vocabulary, threads;
  int32_t rotated, gelu;  // dimensions of a head that are rotated; the gate's activation is GELU's tanh form, not SiLU
  int32_t head_bend, head_residual;  // φ of the heads' layers, see `bent`; whether what a head read is added
  float eps, query_scale, embedding_scale, unused;
};

// A product to do: y [rows, stride] = W x (+ bias), added to y where `onto`; with `up`, y = silu(W x) · (up x), or gelu
struct Product {
  const Matrix* w;
  float* y;
  long stride;
  bool onto = false;
  const Matrix* up = nullptr;
  bool gelu = false;
};

// x · sigmoid(x), or x (1 + tanh u) / 2 = x · sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x³)
static F activated(F x, bool gelu) {
  const F cube = mul(mul(x, x), x);
  const F inner = gelu ? mul(set1(2 * 0.7978845608f), fma(cube, set1(0.044715f), x)) : x;
  return divide(x, add(set1(1), exponential(sub(set1(0), inner))));
}

// The nonlinearity of a head's layer: 0 none, 1 ReLU, 2 GELU, 3 SiLU. GELU is max(x, 0) - |x| · erfc(|x| / √2) / 2, with
// erfc by Abramowitz and Stegun's formula 7.1.26, which errs by less than 1.5e-7.
static F bent(F x, int kind) {
  if (kind == 1) return maximum(x, set1(0));
  if (kind == 3) return activated(x, false);
  if (kind != 2) return x;
  const F z = mul(magnitude(x), set1(0.70710678f)), t = divide(set1(1), fma(z, set1(0.3275911f), set1(1)));
  F p = set1(1.061405429f);
  for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = fma(p, t, set1(c));
  const F half = mul(mul(p, t), mul(set1(0.5f), exponential(sub(set1(0), mul(z, z)))));
  return fnma(magnitude(x), half, maximum(x, set1(0)));
}

static void write(const Product& p, const float* found, const float* second, long first, int row) {
  float* y = p.y + row * p.stride + first;
  const int count = (int)std::min<long>(TILE, p.w->rows - first);
  F v = load(found);
  if (p.w->bias) {
    float bias[TILE] = {};
    std::memcpy(bias, p.w->bias + first, count * sizeof(float));
    v = add(v, load(bias));
  }
  if (second) v = mul(activated(v, p.gelu), load(second));
  float out[TILE];
  store(out, v);
  for (int i = 0; i < count; i++) y[i] = p.onto ? y[i] + out[i] : out[i];
}

static void run_tiles(const Product& p, const Inputs& in, long first, long last) {
  alignas(64) float found[WIDEST * TILE], second[WIDEST * TILE];
  const View own(*p.w), other(p.up ? *p.up : *p.w);
  for (int panel = 0; panel < in.panels(); panel++)
    for (long i = first; i < last; i++) {
      run_tile(own, i, in, panel, found);
      if (p.up) run_tile(other, i, in, panel, second);
      if (p.up && p.up->bias)
        for (int t = 0; t < in.filled(panel); t++)
          for (int r = 0; r < std::min<long>(TILE, p.up->rows - i * TILE); r++)
            second[t * TILE + r] += p.up->bias[i * TILE + r];
      for (int t = 0; t < in.filled(panel); t++)
        write(p, found + t * TILE, p.up ? second + t * TILE : nullptr, i * TILE, panel * WIDEST + t);
    }
}

// Inputs of one width, quantized once for all matrices with the same blocks.
struct Prepared {
  Inputs by_64, by_32, plain;
  bool use[3] = {};

  static int kind(const Matrix& m) { return m.bits == 16 ? 2 : m.block == 32; }
  const Inputs& of(const Matrix& m) const { return kind(m) == 2 ? plain : kind(m) ? by_32 : by_64; }
  void shape(int rows, int columns, std::initializer_list<const Matrix*> readers) {
    use[0] = use[1] = use[2] = false;
    for (const Matrix* m : readers) use[kind(*m)] = true;
    if (use[0]) by_64.shape(rows, columns, 64);
    if (use[1]) by_32.shape(rows, columns, 32);
    if (use[2]) plain.shape(rows, columns, 16);
  }
  void take(int row, const float* x) {
    if (use[0]) by_64.take(row, x);
    if (use[1]) by_32.take(row, x);
    if (use[2]) plain.take(row, x);
  }
};

// Share the tiles of some products with the same inputs among the team.
static void multiply(Team& team, const Prepared& in, std::initializer_list<Product> products) {
  long all = 0, bytes = 0;
  for (const Product& p : products) all += tiles(*p.w), bytes += tiles(*p.w) * tile_bytes(*p.w) * (p.up ? 2 : 1);
  // chunks of about 64 KB: long enough to pay for claiming one, short enough to end together
  const long count = std::clamp<long>(bytes >> 16, team.size() * 3L, 4096);
  team.run(team.size() == 1 ? 1 : (int)std::min(count, all), [&](int chunk, int) {
    const long chunks = team.size() == 1 ? 1 : std::min(count, all);
    long first = all * chunk / chunks, last = all * (chunk + 1) / chunks;
    for (const Product& p : products) {
      const long own = tiles(*p.w);
      if (first < own && last > 0) run_tiles(p, in.of(*p.w), std::max(0L, first), std::min(own, last));
      first -= own, last -= own;
    }
  });
}

// Values of one row of a matrix, as embeddings are looked up: out [columns]
static void look_up(const Matrix& m, long row, float* out) {
  const uint8_t* base = m.data + row / TILE * tile_bytes(m);
  const int lane = row % TILE;
  if (m.bits == 16) {
    for (int c = 0; c < m.columns; c++) {
      const uint32_t bits = (uint32_t)((const uint16_t*)base)[c * TILE + lane] << 16;
      std::memcpy(out + c, &bits, 4);
    }
    return;
  }
  for (int c = 0; c < m.columns; c++) {
    const uint8_t* unit = base + header(m) + c / UNIT * 64L * m.bits;
    const int step = c % UNIT / 4, at = 4 * lane + c % 4;
    int code;
    if (m.bits == 8) code = unit[64 * step + at];
    else if (m.bits == 4) code = unit[64 * (step / 2) + at] >> (step % 2 * 4) & 15;
    else code = unit[64 * (step / 4) + at] >> (step % 4 * 2) & 3;
    if (m.bits == 3) code |= (unit[128 + at] >> step & 1) << 2;
    const int g = c / m.group_size;
    if (m.book) {
      const int other = c ^ 4, half = other % UNIT / 4;  // the other column of the pair
      const int beside = unit[64 * (half / 4) + at] >> (half % 4 * 2) & 3;
      const int pair = step % 2 ? beside | code << 2 : code | beside << 2;
      code = m.book[64 * (step % 2) + 16 * base[groups(m) * TILE * 2 + g * TILE + lane] + pair];
    }
    const uint32_t bits = (uint32_t)((const uint16_t*)base)[g * TILE + lane] << 16;
    float scale;
    std::memcpy(&scale, &bits, 4);
    const float stored = m.step != 0 ? base[groups(m) * TILE * 2 + g * TILE + lane] : 0;
    out[c] = scale * ((float)code - (m.first + m.step * stored));
  }
}

#include "step.h"

// What Python calls. Nothing is thrown: arguments are checked before.
extern "C" {
Engine* thimble_new(const Settings* settings, const Layer* layers, const Matrix* embedding, const Matrix* head,
                    const float* norm) {
  return new Engine(*settings, layers, *embedding, *head, norm);
}
void thimble_free(Engine* engine) { delete engine; }
void thimble_step(Engine* engine, const Cache* cache, int rows, const int32_t* tokens, const int32_t* slots,
                  const int32_t* positions, int wanted, const int32_t* which, float* logits) {
  engine->step(*cache, rows, tokens, slots, positions, wanted, which, logits);
}
// Seconds by phase since the last call, and of waiting (the last of PHASES + 1 numbers); `on` keeps the clock running.
void thimble_profile(Engine* engine, int on, double* seconds) { engine->profile(on, seconds); }

// y [rows, w.rows] = x [rows, w.columns] Wᵀ + bias, on `threads` threads of the caller's team.
void* thimble_team(int threads) { return new Team(threads); }
void thimble_team_free(void* team) { delete (Team*)team; }
void thimble_product(void* team, const Matrix* w, const float* x, int rows, float* y) {
  Prepared in;
  in.shape(rows, w->columns, {w});
  std::vector<float> copy(w->columns + 64);  // rows are read up to 63 floats beyond their end
  for (int row = 0; row < rows; row++) {
    std::memcpy(copy.data(), x + (long)row * w->columns, w->columns * sizeof(float));
    in.take(row, copy.data());
  }
  multiply(*(Team*)team, in, {Product{w, y, w->rows}});
}
// Rows `first` to `last` - 1 as float32 [last - first, columns]
void thimble_rows(void* team, const Matrix* w, long first, long last, float* out) {
  const int count = (int)std::min<long>(last - first, 1024);
  ((Team*)team)->run(count, [&](int chunk, int) {
    for (long row = first + chunk; row < last; row += count) look_up(*w, row, out + (row - first) * w->columns);
  });
}
}
