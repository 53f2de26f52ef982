/*
 * The layout of a real model, from a config.json and parallel sizes: how many
 * ranks it has, which buffers, what may surprise, and what is refused.
 */

#include "check.h"

static const char config[] =
    "{\"architectures\": [\"Qwen3MoeForCausalLM\"], \"hidden_size\": 64, \"head_dim\": 16,"
    " \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2,"
    " \"intermediate_size\": 128, \"moe_intermediate_size\": 32, \"num_experts\": 6,"
    " \"num_experts_per_tok\": 2, \"vocab_size\": 1000}";

static wsync_status from_model(const char *framework, const char *sizes, wsync_layout **out,
                               wsync_error *err) {
  return wsync_layout_from_model(config, strlen(config), framework, sizes, strlen(sizes), 4, out,
                                 err);
}

/* Bytes of a buffer of a rank; ends the program if there is none. */
static uint64_t bytes_of(const wsync_layout *layout, uint32_t rank, const char *name) {
  wsync_error err = WSYNC_ERROR_INIT;
  size_t count = wsync_layout_buffer_count(layout, rank);
  for (size_t i = 0; i < count; i++) {
    wsync_buffer_info info = WSYNC_BUFFER_INFO_INIT;
    OK(err, wsync_layout_buffer_at(layout, rank, i, &info, &err));
    if (strcmp(info.name, name) == 0) return info.bytes;
  }
  fprintf(stderr, "rank %u has no buffer %s\n", rank, name);
  exit(1);
}

/* The summary of a layout, to be freed. */
static char *summary(const wsync_layout *layout) {
  wsync_error err = WSYNC_ERROR_INIT;
  size_t needed = 0;
  char *text;
  OK(err, wsync_layout_describe(layout, NULL, 0, &needed, &err));
  text = (char *)malloc(needed);
  CHECK(text != NULL);
  OK(err, wsync_layout_describe(layout, text, needed, &needed, &err));
  return text;
}

static void trainers(void) {
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_layout *layout = NULL;
  char *text;
  OK(err, from_model("megatron", "tp=2,pp=2,ep=2,frozen=model.embed_tokens.*", &layout, &err));
  CHECK(wsync_layout_rank_count(layout) == 4);
  CHECK(wsync_layout_buffer_count(layout, 3) == 0);
  /* 4 query heads and 2 KV heads of 16 rows, twice; half of the rows. */
  CHECK(bytes_of(layout, 4, "decoder.layers.0.self_attention.linear_qkv.weight") ==
        (4 + 2 + 2) * 16 * 64 * 2 / 2);
  /* 1000 rows are padded to 1024. */
  CHECK(bytes_of(layout, 4, "embedding.word_embeddings.weight") == 1024 / 2 * 64 * 2);
  CHECK(bytes_of(layout, 7, "decoder.layers.0.mlp.experts.linear_fc2.weight2") == 64 * 32 * 2);
  text = summary(layout);
  CHECK(strstr(text, "Megatron's own default is etp = tp") != NULL);
  CHECK(strstr(text, "\"hazards\":[]") != NULL);
  free(text);
  wsync_layout_destroy(layout);
}

/* Counts lines about experts at WARN. */
static void on_line(void *user, uint32_t level, const char *message) {
  int *warnings = (int *)user;
  if (level == WSYNC_LOG_LEVEL_WARN && strstr(message, "6 experts") != NULL) ++*warnings;
}

static void engines(void) {
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_layout *layout = NULL;
  int warnings = 0;
  char *text;
  OK(err, wsync_set_log(on_line, &warnings, WSYNC_LOG_LEVEL_WARN, &err));
  OK(err, from_model("vllm", "tp=4,ep=on,replicas=2", &layout, &err));
  OK(err, wsync_set_log(NULL, NULL, WSYNC_LOG_LEVEL_OFF, &err));
  CHECK(warnings == 1);
  CHECK(wsync_layout_rank_count(layout) == 8);
  CHECK(wsync_layout_copy_count(layout) == 2);
  /* The first ranks have one expert more. */
  CHECK(bytes_of(layout, 4, "model.layers.1.mlp.experts.w2_weight") == 2 * 64 * 32 * 2);
  CHECK(bytes_of(layout, 7, "model.layers.1.mlp.experts.w2_weight") == 1 * 64 * 32 * 2);
  text = summary(layout);
  CHECK(strstr(text, "6 experts are not divisible by the 4 ranks") != NULL);
  CHECK(strstr(text, "\"kind\":\"experts\"") != NULL);
  free(text);
  wsync_layout_destroy(layout);
}

static void mistakes(void) {
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_layout *layout = NULL;
  EXPECT(WSYNC_ERR_LAYOUT_INVALID, err, from_model("megatron", "tp=3", &layout, &err));
  CHECK(strstr(err.message, "not divisible by tp 3") != NULL);
  EXPECT(WSYNC_ERR_LAYOUT_INVALID, err, from_model("vllm", "tp=two", &layout, &err));
  CHECK(strstr(err.message, "tp is \"two\"") != NULL);
  EXPECT(WSYNC_ERR_LAYOUT_INVALID, err, from_model("hf", "frozen=nothing", &layout, &err));
  CHECK(strstr(err.message, "no tensor is named \"nothing\"") != NULL);
  EXPECT(WSYNC_ERR_INVALID_ARGUMENT, err, from_model("trainer", "", &layout, &err));
  CHECK(layout == NULL);
}

int main(void) {
  trainers();
  engines();
  mistakes();
  return 0;
}
