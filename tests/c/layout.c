/* The numbers of the ABI as a C compiler sees them; tests/abi.rs pins the same. */

#include "weightsync.h"

#ifdef __cplusplus
#define ASSERT_STATIC(condition, text) static_assert(condition, text)
#else
#define ASSERT_STATIC(condition, text) _Static_assert(condition, text)
#endif

#define SIZE(type, size) \
  ASSERT_STATIC(sizeof(type) == (size), "size of " #type)
#define OFFSET(type, field, offset) \
  ASSERT_STATIC(offsetof(type, field) == (offset), "offset of " #field)
#define VALUE(name, value) ASSERT_STATIC((name) == (value), #name)

SIZE(wsync_error, 520);
OFFSET(wsync_error, struct_size, 0);
OFFSET(wsync_error, status, 8);
OFFSET(wsync_error, native_code, 12);
OFFSET(wsync_error, native_domain, 16);
OFFSET(wsync_error, rank, 20);
OFFSET(wsync_error, message, 24);

SIZE(wsync_text, 16);
OFFSET(wsync_text, ptr, 0);
OFFSET(wsync_text, bytes, 8);

SIZE(wsync_bytes, 16);
OFFSET(wsync_bytes, ptr, 0);
OFFSET(wsync_bytes, bytes, 8);

SIZE(wsync_rank_list, 16);
OFFSET(wsync_rank_list, ranks, 0);
OFFSET(wsync_rank_list, count, 8);

SIZE(wsync_dtype, 4);
OFFSET(wsync_dtype, code, 0);
OFFSET(wsync_dtype, bits, 1);
OFFSET(wsync_dtype, lanes, 2);

SIZE(wsync_fingerprint, 16);
OFFSET(wsync_fingerprint, bytes, 0);

SIZE(wsync_buffer_info, 1064);
OFFSET(wsync_buffer_info, struct_size, 0);
OFFSET(wsync_buffer_info, bytes, 8);
OFFSET(wsync_buffer_info, side, 16);
OFFSET(wsync_buffer_info, memory, 20);
OFFSET(wsync_buffer_info, device, 24);
OFFSET(wsync_buffer_info, name_bytes, 28);
OFFSET(wsync_buffer_info, name, 32);

SIZE(wsync_env_info, 48);
OFFSET(wsync_env_info, struct_size, 0);
OFFSET(wsync_env_info, name, 8);
OFFSET(wsync_env_info, default_value, 16);
OFFSET(wsync_env_info, value, 24);
OFFSET(wsync_env_info, meaning, 32);
OFFSET(wsync_env_info, is_set, 40);
OFFSET(wsync_env_info, reserved, 44);

SIZE(wsync_tensor, 152);
OFFSET(wsync_tensor, name, 0);
OFFSET(wsync_tensor, dim_count, 16);
OFFSET(wsync_tensor, dtype, 20);
OFFSET(wsync_tensor, shape, 24);
OFFSET(wsync_tensor, granule, 88);

SIZE(wsync_buffer, 32);
OFFSET(wsync_buffer, name, 0);
OFFSET(wsync_buffer, bytes, 16);
OFFSET(wsync_buffer, memory, 24);
OFFSET(wsync_buffer, device, 28);

SIZE(wsync_view, 216);
OFFSET(wsync_view, tensor, 0);
OFFSET(wsync_view, buffer, 4);
OFFSET(wsync_view, offset, 8);
OFFSET(wsync_view, lo, 16);
OFFSET(wsync_view, hi, 80);
OFFSET(wsync_view, strides, 144);
OFFSET(wsync_view, dtype, 208);
OFFSET(wsync_view, reserved, 212);

SIZE(wsync_alias, 32);
OFFSET(wsync_alias, alias, 0);
OFFSET(wsync_alias, name, 16);

SIZE(wsync_rank_views, 112);
OFFSET(wsync_rank_views, struct_size, 0);
OFFSET(wsync_rank_views, rank, 8);
OFFSET(wsync_rank_views, copy, 12);
OFFSET(wsync_rank_views, tensors, 16);
OFFSET(wsync_rank_views, tensor_count, 24);
OFFSET(wsync_rank_views, tensor_stride, 32);
OFFSET(wsync_rank_views, buffers, 40);
OFFSET(wsync_rank_views, buffer_count, 48);
OFFSET(wsync_rank_views, buffer_stride, 56);
OFFSET(wsync_rank_views, views, 64);
OFFSET(wsync_rank_views, view_count, 72);
OFFSET(wsync_rank_views, view_stride, 80);
OFFSET(wsync_rank_views, aliases, 88);
OFFSET(wsync_rank_views, alias_count, 96);
OFFSET(wsync_rank_views, alias_stride, 104);

SIZE(wsync_pair, 8);
OFFSET(wsync_pair, sender, 0);
OFFSET(wsync_pair, receiver, 4);

SIZE(wsync_rank_load, 8);
OFFSET(wsync_rank_load, rank, 0);
OFFSET(wsync_rank_load, pair_count, 4);

SIZE(wsync_moved_pair, 12);
OFFSET(wsync_moved_pair, sender, 0);
OFFSET(wsync_moved_pair, receiver, 4);
OFFSET(wsync_moved_pair, avoided, 8);

SIZE(wsync_mapping_options, 136);
OFFSET(wsync_mapping_options, struct_size, 0);
OFFSET(wsync_mapping_options, kind, 8);
OFFSET(wsync_mapping_options, flags, 12);
OFFSET(wsync_mapping_options, source_tp, 16);
OFFSET(wsync_mapping_options, source_pp, 20);
OFFSET(wsync_mapping_options, source_ep, 24);
OFFSET(wsync_mapping_options, source_dp, 28);
OFFSET(wsync_mapping_options, source_cp, 32);
OFFSET(wsync_mapping_options, destination_tp, 36);
OFFSET(wsync_mapping_options, destination_pp, 40);
OFFSET(wsync_mapping_options, destination_ep, 44);
OFFSET(wsync_mapping_options, replica_count, 48);
OFFSET(wsync_mapping_options, reserved, 52);
OFFSET(wsync_mapping_options, source_devices, 56);
OFFSET(wsync_mapping_options, source_device_count, 64);
OFFSET(wsync_mapping_options, destination_devices, 72);
OFFSET(wsync_mapping_options, destination_device_count, 80);
OFFSET(wsync_mapping_options, source_ranks, 88);
OFFSET(wsync_mapping_options, source_list_count, 96);
OFFSET(wsync_mapping_options, expert_source_ranks, 104);
OFFSET(wsync_mapping_options, expert_source_list_count, 112);
OFFSET(wsync_mapping_options, destination_ranks, 120);
OFFSET(wsync_mapping_options, destination_list_count, 128);

SIZE(wsync_two_stage_options, 80);
OFFSET(wsync_two_stage_options, struct_size, 0);
OFFSET(wsync_two_stage_options, avoid_same_device, 8);
OFFSET(wsync_two_stage_options, source_tp, 12);
OFFSET(wsync_two_stage_options, source_pp, 16);
OFFSET(wsync_two_stage_options, source_ep, 20);
OFFSET(wsync_two_stage_options, source_dp, 24);
OFFSET(wsync_two_stage_options, source_cp, 28);
OFFSET(wsync_two_stage_options, destination_tp, 32);
OFFSET(wsync_two_stage_options, destination_pp, 36);
OFFSET(wsync_two_stage_options, destination_ep, 40);
OFFSET(wsync_two_stage_options, replica_count, 44);
OFFSET(wsync_two_stage_options, source_ranks, 48);
OFFSET(wsync_two_stage_options, source_list_count, 56);
OFFSET(wsync_two_stage_options, destination_ranks, 64);
OFFSET(wsync_two_stage_options, destination_list_count, 72);

SIZE(wsync_plan_options, 88);
OFFSET(wsync_plan_options, struct_size, 0);
OFFSET(wsync_plan_options, strategy, 8);
OFFSET(wsync_plan_options, source_rule, 12);
OFFSET(wsync_plan_options, staging_bytes_max, 16);
OFFSET(wsync_plan_options, direct_bytes_min, 24);
OFFSET(wsync_plan_options, bucket_count, 32);
OFFSET(wsync_plan_options, copy_count, 36);
OFFSET(wsync_plan_options, unused_allowed, 40);
OFFSET(wsync_plan_options, unused_allowed_count, 48);
OFFSET(wsync_plan_options, two_stage, 56);
OFFSET(wsync_plan_options, topology, 64);
OFFSET(wsync_plan_options, order, 72);
OFFSET(wsync_plan_options, spread, 76);
OFFSET(wsync_plan_options, source_relay, 80);
OFFSET(wsync_plan_options, reserved, 84);

SIZE(wsync_simulate_options, 32);
OFFSET(wsync_simulate_options, struct_size, 0);
OFFSET(wsync_simulate_options, seed, 8);
OFFSET(wsync_simulate_options, straggler_count, 16);
OFFSET(wsync_simulate_options, straggler_percent, 20);
OFFSET(wsync_simulate_options, failure_count, 24);
OFFSET(wsync_simulate_options, reserved, 28);

SIZE(wsync_host_group, 32);
OFFSET(wsync_host_group, count, 0);
OFFSET(wsync_host_group, gpus, 4);
OFFSET(wsync_host_group, nics, 8);
OFFSET(wsync_host_group, domain_hosts, 12);
OFFSET(wsync_host_group, nic_bytes_per_s, 16);
OFFSET(wsync_host_group, nvlink_bytes_per_s, 24);

SIZE(wsync_placement_run, 24);
OFFSET(wsync_placement_run, ranks, 0);
OFFSET(wsync_placement_run, gpu, 16);
OFFSET(wsync_placement_run, ranks_per_gpu, 20);

SIZE(wsync_speed_factor, 32);
OFFSET(wsync_speed_factor, ranks, 0);
OFFSET(wsync_speed_factor, nic_percent, 16);
OFFSET(wsync_speed_factor, nvlink_percent, 20);
OFFSET(wsync_speed_factor, is_drained, 24);
OFFSET(wsync_speed_factor, reserved, 28);

SIZE(wsync_fabric_cut, 40);
OFFSET(wsync_fabric_cut, name, 0);
OFFSET(wsync_fabric_cut, hosts, 16);
OFFSET(wsync_fabric_cut, is_by_rail, 20);
OFFSET(wsync_fabric_cut, out_bytes_per_s, 24);
OFFSET(wsync_fabric_cut, in_bytes_per_s, 32);

SIZE(wsync_topology_options, 120);
OFFSET(wsync_topology_options, struct_size, 0);
OFFSET(wsync_topology_options, hosts, 8);
OFFSET(wsync_topology_options, host_count, 16);
OFFSET(wsync_topology_options, host_stride, 24);
OFFSET(wsync_topology_options, placement, 32);
OFFSET(wsync_topology_options, placement_count, 40);
OFFSET(wsync_topology_options, placement_stride, 48);
OFFSET(wsync_topology_options, speeds, 56);
OFFSET(wsync_topology_options, speed_count, 64);
OFFSET(wsync_topology_options, speed_stride, 72);
OFFSET(wsync_topology_options, cuts, 80);
OFFSET(wsync_topology_options, cut_count, 88);
OFFSET(wsync_topology_options, cut_stride, 96);
OFFSET(wsync_topology_options, latency_ns, 104);
OFFSET(wsync_topology_options, pack_bytes_per_s, 112);

SIZE(wsync_rank_place, 80);
OFFSET(wsync_rank_place, struct_size, 0);
OFFSET(wsync_rank_place, rank, 8);
OFFSET(wsync_rank_place, reserved, 12);
OFFSET(wsync_rank_place, host, 16);
OFFSET(wsync_rank_place, device, 32);
OFFSET(wsync_rank_place, domain, 48);
OFFSET(wsync_rank_place, nics, 64);
OFFSET(wsync_rank_place, nic_count, 72);

SIZE(wsync_site, 40);
OFFSET(wsync_site, struct_size, 0);
OFFSET(wsync_site, gpu, 8);
OFFSET(wsync_site, host, 12);
OFFSET(wsync_site, domain, 16);
OFFSET(wsync_site, rail, 20);
OFFSET(wsync_site, nic_bytes_per_s, 24);
OFFSET(wsync_site, nvlink_bytes_per_s, 32);

SIZE(wsync_selector, 96);
OFFSET(wsync_selector, struct_size, 0);
OFFSET(wsync_selector, include, 8);
OFFSET(wsync_selector, include_count, 16);
OFFSET(wsync_selector, exclude, 24);
OFFSET(wsync_selector, exclude_count, 32);
OFFSET(wsync_selector, layers, 40);
OFFSET(wsync_selector, layers_count, 48);
OFFSET(wsync_selector, experts, 56);
OFFSET(wsync_selector, experts_count, 64);
OFFSET(wsync_selector, copies, 72);
OFFSET(wsync_selector, copies_count, 80);
OFFSET(wsync_selector, trainable, 88);
OFFSET(wsync_selector, draft, 92);

SIZE(wsync_number_range, 8);
OFFSET(wsync_number_range, first, 0);
OFFSET(wsync_number_range, end, 4);

SIZE(wsync_program_info, 64);
OFFSET(wsync_program_info, struct_size, 0);
OFFSET(wsync_program_info, bytes_sent, 8);
OFFSET(wsync_program_info, bytes_received, 16);
OFFSET(wsync_program_info, bytes_local, 24);
OFFSET(wsync_program_info, staging_bytes, 32);
OFFSET(wsync_program_info, message_count, 40);
OFFSET(wsync_program_info, direct_message_count, 48);
OFFSET(wsync_program_info, peer_count, 56);
OFFSET(wsync_program_info, buffer_count, 60);

SIZE(wsync_transport_options, 48);
OFFSET(wsync_transport_options, struct_size, 0);
OFFSET(wsync_transport_options, kind, 8);
OFFSET(wsync_transport_options, rank, 12);
OFFSET(wsync_transport_options, ranks, 16);
OFFSET(wsync_transport_options, rank_count, 24);
OFFSET(wsync_transport_options, reserved, 28);
OFFSET(wsync_transport_options, ring_bytes_max, 32);
OFFSET(wsync_transport_options, nccl, 40);

SIZE(wsync_nccl_options, 88);
OFFSET(wsync_nccl_options, struct_size, 0);
OFFSET(wsync_nccl_options, mode, 8);
OFFSET(wsync_nccl_options, cta_count_min, 12);
OFFSET(wsync_nccl_options, cta_count_max, 16);
OFFSET(wsync_nccl_options, p2p_peer_count_max, 20);
OFFSET(wsync_nccl_options, net_channel_count, 24);
OFFSET(wsync_nccl_options, is_rebuildable, 28);
OFFSET(wsync_nccl_options, comm, 32);
OFFSET(wsync_nccl_options, id, 40);
OFFSET(wsync_nccl_options, library, 48);
OFFSET(wsync_nccl_options, rebuild_from, 56);
OFFSET(wsync_nccl_options, on_abort, 64);
OFFSET(wsync_nccl_options, on_abort_user, 72);
OFFSET(wsync_nccl_options, ipc, 80);
OFFSET(wsync_nccl_options, is_lending, 84);

SIZE(wsync_session_options, 16);
OFFSET(wsync_session_options, struct_size, 0);
OFFSET(wsync_session_options, load_deadline_ns, 8);

SIZE(wsync_binding, 184);
OFFSET(wsync_binding, name, 0);
OFFSET(wsync_binding, ptr, 16);
OFFSET(wsync_binding, bytes, 24);
OFFSET(wsync_binding, side, 32);
OFFSET(wsync_binding, memory, 36);
OFFSET(wsync_binding, device, 40);
OFFSET(wsync_binding, reserved, 44);
OFFSET(wsync_binding, dtype, 48);
OFFSET(wsync_binding, dim_count, 52);
OFFSET(wsync_binding, shape, 56);
OFFSET(wsync_binding, strides, 120);

SIZE(wsync_request_options, 40);
OFFSET(wsync_request_options, struct_size, 0);
OFFSET(wsync_request_options, version, 8);
OFFSET(wsync_request_options, agree_deadline_ns, 16);
OFFSET(wsync_request_options, stall_deadline_ns, 24);
OFFSET(wsync_request_options, flags, 32);
OFFSET(wsync_request_options, reserved, 36);

SIZE(wsync_status, 4);
VALUE(WSYNC_OK, 0);
VALUE(WSYNC_IN_PROGRESS, 1);
VALUE(WSYNC_ERR_INVALID_ARGUMENT, -1);
VALUE(WSYNC_ERR_BAD_HANDLE, -2);
VALUE(WSYNC_ERR_BUFFER_TOO_SMALL, -3);
VALUE(WSYNC_ERR_UNSUPPORTED, -4);
VALUE(WSYNC_ERR_BUSY, -5);
VALUE(WSYNC_ERR_LIMIT_EXCEEDED, -6);
VALUE(WSYNC_ERR_NOT_FOUND, -7);
VALUE(WSYNC_ERR_INVALID_STATE, -8);
VALUE(WSYNC_ERR_PLAN_MISMATCH, -20);
VALUE(WSYNC_ERR_LAYOUT_INVALID, -21);
VALUE(WSYNC_ERR_CORRUPT, -22);
VALUE(WSYNC_ERR_VERSION_MISMATCH, -23);
VALUE(WSYNC_ERR_BUFFER_MISMATCH, -24);
VALUE(WSYNC_ERR_STAGING_TOO_SMALL, -25);
VALUE(WSYNC_ERR_CHECKSUM_MISMATCH, -26);
VALUE(WSYNC_ERR_INFEASIBLE, -27);
VALUE(WSYNC_ERR_LIBRARY_NOT_FOUND, -40);
VALUE(WSYNC_ERR_LIBRARY_TOO_OLD, -41);
VALUE(WSYNC_ERR_IO, -42);
VALUE(WSYNC_ERR_OUT_OF_MEMORY, -43);
VALUE(WSYNC_ERR_SYSTEM, -44);
VALUE(WSYNC_ERR_AGREEMENT_TIMEOUT, -60);
VALUE(WSYNC_ERR_REFUSED, -61);
VALUE(WSYNC_ERR_PEER_LOST, -80);
VALUE(WSYNC_ERR_STALLED, -81);
VALUE(WSYNC_ERR_ABORTED, -82);
VALUE(WSYNC_ERR_MEET_TIMEOUT, -83);
VALUE(WSYNC_ERR_PROTOCOL, -84);
VALUE(WSYNC_ERR_INTERNAL, -100);
VALUE(WSYNC_ERR_POISONED, -101);

SIZE(wsync_native_domain, 4);
VALUE(WSYNC_NATIVE_DOMAIN_NONE, 0);
VALUE(WSYNC_NATIVE_DOMAIN_ERRNO, 1);
VALUE(WSYNC_NATIVE_DOMAIN_NCCL, 2);
VALUE(WSYNC_NATIVE_DOMAIN_CUDA, 3);
VALUE(WSYNC_NATIVE_DOMAIN_UCX, 4);

SIZE(wsync_side, 4);
VALUE(WSYNC_SIDE_SOURCE, 1);
VALUE(WSYNC_SIDE_DESTINATION, 2);

SIZE(wsync_memory, 4);
VALUE(WSYNC_MEMORY_HOST, 0);
VALUE(WSYNC_MEMORY_PINNED_HOST, 1);
VALUE(WSYNC_MEMORY_DEVICE, 2);

SIZE(wsync_dtype_code, 1);
VALUE(WSYNC_DTYPE_CODE_INT, 0);
VALUE(WSYNC_DTYPE_CODE_UINT, 1);
VALUE(WSYNC_DTYPE_CODE_FLOAT, 2);
VALUE(WSYNC_DTYPE_CODE_BFLOAT, 4);
VALUE(WSYNC_DTYPE_CODE_COMPLEX, 5);
VALUE(WSYNC_DTYPE_CODE_BOOL, 6);
VALUE(WSYNC_DTYPE_CODE_FLOAT8_E3M4, 7);
VALUE(WSYNC_DTYPE_CODE_FLOAT8_E4M3, 8);
VALUE(WSYNC_DTYPE_CODE_FLOAT8_E4M3B11FNUZ, 9);
VALUE(WSYNC_DTYPE_CODE_FLOAT8_E4M3FN, 10);
VALUE(WSYNC_DTYPE_CODE_FLOAT8_E4M3FNUZ, 11);
VALUE(WSYNC_DTYPE_CODE_FLOAT8_E5M2, 12);
VALUE(WSYNC_DTYPE_CODE_FLOAT8_E5M2FNUZ, 13);
VALUE(WSYNC_DTYPE_CODE_FLOAT8_E8M0FNU, 14);
VALUE(WSYNC_DTYPE_CODE_FLOAT6_E2M3FN, 15);
VALUE(WSYNC_DTYPE_CODE_FLOAT6_E3M2FN, 16);
VALUE(WSYNC_DTYPE_CODE_FLOAT4_E2M1FN, 17);

SIZE(wsync_outcome, 4);
VALUE(WSYNC_OUTCOME_UNTOUCHED, 1);
VALUE(WSYNC_OUTCOME_COMPLETE, 2);
VALUE(WSYNC_OUTCOME_TORN, 3);

SIZE(wsync_state, 4);
VALUE(WSYNC_STATE_IDLE, 0);
VALUE(WSYNC_STATE_PREPARING, 1);
VALUE(WSYNC_STATE_READY, 2);
VALUE(WSYNC_STATE_RUNNING, 3);
VALUE(WSYNC_STATE_SETTLING, 4);
VALUE(WSYNC_STATE_DONE, 5);
VALUE(WSYNC_STATE_FAILED, 6);

SIZE(wsync_log_level, 4);
VALUE(WSYNC_LOG_LEVEL_OFF, 0);
VALUE(WSYNC_LOG_LEVEL_ERROR, 1);
VALUE(WSYNC_LOG_LEVEL_WARN, 2);
VALUE(WSYNC_LOG_LEVEL_INFO, 3);
VALUE(WSYNC_LOG_LEVEL_DEBUG, 4);

SIZE(wsync_mapping_kind, 4);
VALUE(WSYNC_MAPPING_KIND_TWO_STAGE, 1);
VALUE(WSYNC_MAPPING_KIND_SINGLE_STAGE, 2);
VALUE(WSYNC_MAPPING_KIND_EXPERT, 3);

SIZE(wsync_mapping_flag, 4);
VALUE(WSYNC_MAPPING_FLAG_COLOCATED, 1);
VALUE(WSYNC_MAPPING_FLAG_KEEP_SAME_DEVICE, 2);
VALUE(WSYNC_MAPPING_FLAG_VLLM, 4);
VALUE(WSYNC_MAPPING_FLAG_APART, 8);

SIZE(wsync_mapping_list, 4);
VALUE(WSYNC_MAPPING_LIST_PAIRS, 1);
VALUE(WSYNC_MAPPING_LIST_FORWARDS, 2);
VALUE(WSYNC_MAPPING_LIST_ROUTED, 3);
VALUE(WSYNC_MAPPING_LIST_SAME_DEVICE, 4);

SIZE(wsync_regroup_kind, 4);
VALUE(WSYNC_REGROUP_KIND_NONE, 0);
VALUE(WSYNC_REGROUP_KIND_ALL_TO_ALL, 1);
VALUE(WSYNC_REGROUP_KIND_ALL_GATHER, 2);

SIZE(wsync_strategy, 4);
VALUE(WSYNC_STRATEGY_DEFAULT, 0);
VALUE(WSYNC_STRATEGY_DIRECT, 1);
VALUE(WSYNC_STRATEGY_TWO_STAGE, 2);
VALUE(WSYNC_STRATEGY_RELAY, 3);
VALUE(WSYNC_STRATEGY_FANOUT, 4);
VALUE(WSYNC_STRATEGY_AUTO, 5);

SIZE(wsync_source_rule, 4);
VALUE(WSYNC_SOURCE_RULE_DEFAULT, 0);
VALUE(WSYNC_SOURCE_RULE_WRAP, 1);
VALUE(WSYNC_SOURCE_RULE_ROTATE, 2);

SIZE(wsync_spread, 4);
VALUE(WSYNC_SPREAD_DEFAULT, 0);
VALUE(WSYNC_SPREAD_SCATTER, 1);
VALUE(WSYNC_SPREAD_CHAIN, 2);

SIZE(wsync_order, 4);
VALUE(WSYNC_ORDER_DEFAULT, 0);
VALUE(WSYNC_ORDER_FRACTION, 1);
VALUE(WSYNC_ORDER_LAYER, 2);

SIZE(wsync_nccl_mode, 4);
VALUE(WSYNC_NCCL_MODE_OWN, 1);
VALUE(WSYNC_NCCL_MODE_SPLIT, 2);
VALUE(WSYNC_NCCL_MODE_DIRECT, 3);

SIZE(wsync_nccl_ipc, 4);
VALUE(WSYNC_NCCL_IPC_OFF, 1);
VALUE(WSYNC_NCCL_IPC_DEVICE, 2);
VALUE(WSYNC_NCCL_IPC_DOMAIN, 3);

SIZE(wsync_transport_kind, 4);
VALUE(WSYNC_TRANSPORT_KIND_LOOPBACK, 1);
VALUE(WSYNC_TRANSPORT_KIND_SHM, 2);
VALUE(WSYNC_TRANSPORT_KIND_NCCL, 3);

SIZE(wsync_request_flag, 4);
VALUE(WSYNC_REQUEST_FLAG_VERIFY, 1);
VALUE(WSYNC_REQUEST_FLAG_DRY_RUN, 2);

VALUE(WSYNC_ABI_VERSION, 0);
VALUE(WSYNC_RANK_NONE, UINT32_MAX);
VALUE(WSYNC_STEP_NONE, UINT32_MAX);
VALUE(WSYNC_NO_DEADLINE, UINT64_MAX);
VALUE(WSYNC_DIM_COUNT_MAX, 8);
VALUE(WSYNC_NAME_BYTES_MAX, 1024);
VALUE(WSYNC_GREETING_BYTES_MAX, 512);
VALUE(WSYNC_NCCL_ID_BYTES, 128);
VALUE(WSYNC_SELECT_ANY, 0);
VALUE(WSYNC_SELECT_ONLY, 1);
VALUE(WSYNC_SELECT_WITHOUT, 2);

/* Every initialiser names all fields, sets the size, and leaves the rest 0. */
static int is_zero(const void *from, size_t first, size_t size) {
  const unsigned char *bytes = (const unsigned char *)from;
  for (size_t i = first; i < size; i++) {
    if (bytes[i] != 0) return 0;
  }
  return 1;
}

#define CHECK_INIT(type, init) \
  do { \
    const type value = init; \
    if (value.struct_size != sizeof(type)) return 1; \
    if (!is_zero(&value, sizeof(size_t), sizeof(type))) return 2; \
  } while (0)

int main(void) {
  const wsync_rank_views views = WSYNC_RANK_VIEWS_INIT;
  const wsync_topology_options topology = WSYNC_TOPOLOGY_OPTIONS_INIT;
  CHECK_INIT(wsync_error, WSYNC_ERROR_INIT);
  CHECK_INIT(wsync_env_info, WSYNC_ENV_INFO_INIT);
  CHECK_INIT(wsync_buffer_info, WSYNC_BUFFER_INFO_INIT);
  CHECK_INIT(wsync_mapping_options, WSYNC_MAPPING_OPTIONS_INIT);
  CHECK_INIT(wsync_two_stage_options, WSYNC_TWO_STAGE_OPTIONS_INIT);
  CHECK_INIT(wsync_plan_options, WSYNC_PLAN_OPTIONS_INIT);
  CHECK_INIT(wsync_simulate_options, WSYNC_SIMULATE_OPTIONS_INIT);
  CHECK_INIT(wsync_rank_place, WSYNC_RANK_PLACE_INIT);
  CHECK_INIT(wsync_site, WSYNC_SITE_INIT);
  CHECK_INIT(wsync_selector, WSYNC_SELECTOR_INIT);
  CHECK_INIT(wsync_program_info, WSYNC_PROGRAM_INFO_INIT);
  CHECK_INIT(wsync_transport_options, WSYNC_TRANSPORT_OPTIONS_INIT);
  CHECK_INIT(wsync_nccl_options, WSYNC_NCCL_OPTIONS_INIT);
  CHECK_INIT(wsync_session_options, WSYNC_SESSION_OPTIONS_INIT);
  CHECK_INIT(wsync_request_options, WSYNC_REQUEST_OPTIONS_INIT);
  if (views.struct_size != sizeof(views)) return 3;
  if (views.tensor_stride != sizeof(wsync_tensor)) return 4;
  if (views.buffer_stride != sizeof(wsync_buffer)) return 5;
  if (views.view_stride != sizeof(wsync_view)) return 6;
  if (views.alias_stride != sizeof(wsync_alias)) return 7;
  if (topology.struct_size != sizeof(topology)) return 8;
  if (topology.host_stride != sizeof(wsync_host_group)) return 9;
  if (topology.placement_stride != sizeof(wsync_placement_run)) return 10;
  if (topology.speed_stride != sizeof(wsync_speed_factor)) return 11;
  if (topology.cut_stride != sizeof(wsync_fabric_cut)) return 12;
  return 0;
}
