/*
 * The rank mappings from C: experts of ranks that lists name, and the way each
 * rank sees them; pairs that moved off a shared device; a single stage of
 * colocated models.
 */

#include "check.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static wsync_mapping_options options_of(uint32_t kind, const uint32_t *source, size_t source_count,
                                        const uint32_t *destination, size_t destination_count) {
  wsync_mapping_options options = WSYNC_MAPPING_OPTIONS_INIT;
  options.kind = kind;
  options.source_devices = source;
  options.source_device_count = source_count;
  options.destination_devices = destination;
  options.destination_device_count = destination_count;
  return options;
}

static wsync_mapping *made(const wsync_mapping_options *options) {
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_mapping *mapping = NULL;
  OK(err, wsync_mapping_create(options, &mapping, &err));
  return mapping;
}

/* Pair number `index` of `list` is this one. */
static void check_pair(const wsync_mapping *mapping, uint32_t list, size_t index, uint32_t sender,
                       uint32_t receiver) {
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_pair pairs[8];
  size_t count = 0;
  OK(err, wsync_mapping_pairs(mapping, list, pairs, COUNT(pairs), &count, &err));
  CHECK(index < count);
  CHECK(pairs[index].sender == sender && pairs[index].receiver == receiver);
}

static void experts_of_given_ranks(void) {
  static const uint32_t devices[] = {0, 1, 2, 3};
  static const uint32_t served_devices[] = {4, 5};
  static const uint32_t whole[] = {3, 2};
  static const uint32_t row0[] = {3};
  static const uint32_t row1[] = {2};
  static const uint32_t replica[] = {5, 4};
  wsync_rank_list expert, rest[2], served;
  wsync_mapping_options options =
      options_of(WSYNC_MAPPING_KIND_EXPERT, devices, COUNT(devices), served_devices,
                 COUNT(served_devices));
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_mapping *mapping;
  wsync_rank_load loads[2];
  uint32_t ranks[4] = {99, 99, 99, 99};
  size_t count = 0;

  expert.ranks = whole, expert.count = COUNT(whole);
  rest[0].ranks = row0, rest[0].count = COUNT(row0);
  rest[1].ranks = row1, rest[1].count = COUNT(row1);
  served.ranks = replica, served.count = COUNT(replica);
  options.flags = WSYNC_MAPPING_FLAG_VLLM;
  options.source_ep = 2;
  options.destination_tp = 2;
  options.source_ranks = rest;
  options.source_list_count = COUNT(rest);
  options.destination_ranks = &served;
  options.destination_list_count = 1;

  /* Single rows do not say who holds which routed experts. */
  mapping = NULL;
  EXPECT(WSYNC_ERR_INVALID_ARGUMENT, err, wsync_mapping_create(&options, &mapping, &err));
  CHECK(mapping == NULL && strstr(err.message, "expert_source_ranks") != NULL);

  options.expert_source_ranks = &expert;
  options.expert_source_list_count = 1;
  mapping = made(&options);
  check_pair(mapping, WSYNC_MAPPING_LIST_ROUTED, 0, 3, 5);
  check_pair(mapping, WSYNC_MAPPING_LIST_ROUTED, 1, 2, 4);
  check_pair(mapping, WSYNC_MAPPING_LIST_PAIRS, 0, 3, 5);
  check_pair(mapping, WSYNC_MAPPING_LIST_FORWARDS, 0, 5, 4);
  CHECK(wsync_mapping_regroup_kind(mapping) == WSYNC_REGROUP_KIND_ALL_TO_ALL);
  CHECK(wsync_mapping_regroup_count(mapping) == 1);
  OK(err, wsync_mapping_regroup_at(mapping, 0, ranks, COUNT(ranks), &count, &err));
  CHECK(count == 2 && ranks[0] == 3 && ranks[1] == 2);

  OK(err, wsync_mapping_sends(mapping, WSYNC_MAPPING_LIST_ROUTED, 2, ranks, COUNT(ranks), &count,
                              &err));
  CHECK(count == 1 && ranks[0] == 4);
  OK(err, wsync_mapping_receives(mapping, WSYNC_MAPPING_LIST_FORWARDS, 4, ranks, COUNT(ranks),
                                 &count, &err));
  CHECK(count == 1 && ranks[0] == 5);
  OK(err, wsync_mapping_sends(mapping, WSYNC_MAPPING_LIST_PAIRS, 0, NULL, 0, &count, &err));
  CHECK(count == 0);
  EXPECT(WSYNC_ERR_NOT_FOUND, err,
         wsync_mapping_sends(mapping, WSYNC_MAPPING_LIST_PAIRS, 6, NULL, 0, &count, &err));
  OK(err, wsync_mapping_loads(mapping, WSYNC_MAPPING_LIST_PAIRS, loads, COUNT(loads), &count,
                              &err));
  CHECK(count == 2 && loads[0].rank == 5 && loads[0].pair_count == 1);
  CHECK(loads[1].rank == 4 && loads[1].pair_count == 0);
  wsync_mapping_destroy(mapping);
}

static void moved_pairs(void) {
  static const uint32_t devices[] = {0, 1, 2, 3};
  static const uint32_t served_devices[] = {0, 9, 8, 1};
  wsync_mapping_options options =
      options_of(WSYNC_MAPPING_KIND_TWO_STAGE, devices, COUNT(devices), served_devices,
                 COUNT(served_devices));
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_moved_pair moved[4];
  wsync_mapping *mapping;
  size_t count = 0;

  options.source_tp = 2;
  options.source_pp = 2;
  options.destination_tp = 4;
  mapping = made(&options);
  OK(err, wsync_mapping_moved(mapping, moved, COUNT(moved), &count, &err));
  CHECK(count == 1);
  CHECK(moved[0].sender == 0 && moved[0].receiver == 5 && moved[0].avoided == 4);
  wsync_mapping_destroy(mapping);

  options.flags = WSYNC_MAPPING_FLAG_KEEP_SAME_DEVICE;
  mapping = made(&options);
  OK(err, wsync_mapping_moved(mapping, NULL, 0, &count, &err));
  CHECK(count == 0);
  check_pair(mapping, WSYNC_MAPPING_LIST_SAME_DEVICE, 0, 0, 4);
  wsync_mapping_destroy(mapping);
}

/* Source copies are taken from the last to the first if devices are shared. */
static void a_single_stage(void) {
  static const uint32_t devices[] = {0, 1};
  static const uint32_t served_devices[] = {1, 0};
  wsync_mapping_options options =
      options_of(WSYNC_MAPPING_KIND_SINGLE_STAGE, devices, COUNT(devices), served_devices,
                 COUNT(served_devices));
  wsync_mapping *mapping;

  options.source_dp = 2;
  options.replica_count = 2;
  mapping = made(&options);
  check_pair(mapping, WSYNC_MAPPING_LIST_PAIRS, 0, 1, 2);
  check_pair(mapping, WSYNC_MAPPING_LIST_PAIRS, 1, 0, 3);
  wsync_mapping_destroy(mapping);

  options.flags = WSYNC_MAPPING_FLAG_APART;
  mapping = made(&options);
  check_pair(mapping, WSYNC_MAPPING_LIST_PAIRS, 0, 0, 2);
  wsync_mapping_destroy(mapping);
}

int main(void) {
  CHECK(wsync_header_matches());
  experts_of_given_ranks();
  moved_pairs();
  a_single_stage();
  puts("the mappings hold");
  return 0;
}
