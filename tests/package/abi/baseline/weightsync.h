/*
 * weightsync: moves weights from trainer ranks to inference ranks.
 *
 * Copyright the weightsync authors. Licensed under the Apache License 2.0.
 *
 * Generated from src/capi by cbindgen; do not edit.
 *
 *
 * THE WAY THROUGH
 *
 *   wsync_layout_create_from_json    both sides: who holds which bytes
 *   wsync_plan_create                what has to move
 *   wsync_transport_create           per rank: how it moves
 *   wsync_transport_greeting         ... gather all greetings ...
 *   wsync_transport_meet
 *   wsync_session_create             this rank's memory, by name
 *   wsync_session_bind
 *   wsync_session_load
 *   wsync_request_create             once
 *   wsync_request_submit             for every version of the weights
 *   wsync_request_wait
 *   wsync_request_outcome            COMPLETE: the copy may serve
 *
 *
 * RULES THAT HOLD FOR EVERY FUNCTION
 *
 * Handles. What create makes, destroy ends, once; NULL is fine there. Children
 * keep what they were made from alive inside, so the order of destroys does
 * not matter. Nothing in a destroy waits for a peer.
 *
 * Threads. A function that takes `const wsync_x *` may be called by any number
 * of threads at a time. One that takes `wsync_x *` is exclusive: a second call
 * at the same time answers WSYNC_ERR_BUSY. Exceptions are named.
 *
 * Results. Functions return a wsync_status, outputs come last and are written
 * only on success: after a failure everything is as it was. Getters that
 * cannot fail return their value and answer 0 for NULL.
 *
 * Errors. `err` may be NULL. Otherwise the caller owns the record and sets its
 * struct_size (WSYNC_ERROR_INIT); it is written only when a call fails.
 *
 * Structs. The first field is struct_size = sizeof(struct). Every other field
 * may be 0, which means its default, so a struct that is all zero but for
 * struct_size is always valid; WSYNC_<NAME>_INIT is one. Elements of arrays
 * have no struct_size; their array has a stride instead. Later versions append
 * fields. A library that does not know a field takes the struct if the field
 * is 0, and answers WSYNC_ERR_UNSUPPORTED otherwise.
 * These never grow: wsync_text, wsync_bytes, wsync_pair, wsync_moved_pair,
 * wsync_rank_load, wsync_rank_list, wsync_number_range, wsync_dtype,
 * wsync_fingerprint.
 *
 * Memory. What is passed in is read during the call and never kept, but for
 * buffers bound to a session. What comes back is written to the caller's
 * memory: `capacity` says how much there is, `out_needed` or `out_count` how
 * much it takes; a capacity of 0 asks for just that. A result that does not
 * fit is WSYNC_ERR_BUFFER_TOO_SMALL, and nothing is written. Static text is
 * never freed.
 *
 * Text is UTF-8. Names have at most WSYNC_NAME_BYTES_MAX bytes.
 *
 * Time. Deadlines are nanoseconds from the call; WSYNC_NO_DEADLINE never comes.
 *
 * Fork. A transport, session or request does not survive it: in the child its
 * functions answer WSYNC_ERR_INVALID_STATE. Layouts, plans and mappings do.
 *
 * Unloading the library is not supported.
 */

#ifndef WEIGHTSYNC_H
#define WEIGHTSYNC_H


#include <stddef.h>
#include <stdint.h>

/**
 * No rank.
 *
 * Since: 0.1
 */
#define WSYNC_RANK_NONE 4294967295

/**
 * No step.
 *
 * Since: 0.1
 */
#define WSYNC_STEP_NONE 4294967295

/**
 * A deadline that never comes.
 *
 * Since: 0.1
 */
#define WSYNC_NO_DEADLINE 18446744073709551615ull

/**
 * Axes of a tensor, at most.
 *
 * Since: 0.1
 */
#define WSYNC_DIM_COUNT_MAX 8

/**
 * Bytes of a name, at most, without a NUL.
 *
 * Since: 0.1
 */
#define WSYNC_NAME_BYTES_MAX 1024

/**
 * Bytes of a greeting, at most.
 *
 * Since: 0.1
 */
#define WSYNC_GREETING_BYTES_MAX 512

/**
 * Version of the header: major, minor and patch, 8 bits each.
 *
 * Since: 0.1
 */
#define WSYNC_VERSION 256

/**
 * The major part of it.
 *
 * Since: 0.1
 */
#define WSYNC_VERSION_MAJOR 0

/**
 * The minor part of it.
 *
 * Since: 0.1
 */
#define WSYNC_VERSION_MINOR 1

/**
 * The patch part of it.
 *
 * Since: 0.1
 */
#define WSYNC_VERSION_PATCH 0

/**
 * Number of the binary interface: the digit of libweightsync.so.0. Within one
 * number, functions, enum values and trailing struct fields are only added.
 *
 * Since: 0.1
 */
#define WSYNC_ABI_VERSION 0

/**
 * No choice: everything.
 *
 * Since: 0.1
 */
#define WSYNC_SELECT_ANY 0

/**
 * Only what has the property.
 *
 * Since: 0.1
 */
#define WSYNC_SELECT_ONLY 1

/**
 * Only what has it not.
 *
 * Since: 0.1
 */
#define WSYNC_SELECT_WITHOUT 2

/**
 * Bytes of an NCCL unique id.
 *
 * Since: 0.1
 */
#define WSYNC_NCCL_ID_BYTES 128

/**
 * The result of a call.
 *
 * Zero is success, positive means not finished yet, negative means failed.
 * Failures are grouped by what is damaged, which is what a caller has to
 * decide on:
 *
 *   -1 .. -19    nothing, the call was wrong      fix the call
 *   -20 .. -39   layouts, plan, data disagree     describe or plan again
 *   -40 .. -59   the environment                  fix the installation
 *   -60 .. -79   this request only                try again
 *   -80 .. -99   the transport                    rebuild it
 *   -100 ..      our own invariants               report it, destroy the handle
 *
 * Since: 0.1
 */
enum wsync_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Done.
   */
  WSYNC_OK = 0,
  /**
   * Not finished yet; nothing is wrong.
   */
  WSYNC_IN_PROGRESS = 1,
  /**
   * An argument is NULL, out of range, not UTF-8, or contradicts another.
   */
  WSYNC_ERR_INVALID_ARGUMENT = -1,
  /**
   * A handle is not one, or not of this type.
   */
  WSYNC_ERR_BAD_HANDLE = -2,
  /**
   * A result does not fit; ask for its size with a capacity of 0.
   */
  WSYNC_ERR_BUFFER_TOO_SMALL = -3,
  /**
   * This library cannot do that: an unknown flag, kind or struct tail.
   */
  WSYNC_ERR_UNSUPPORTED = -4,
  /**
   * Another call on the same handle, or a request, is under way.
   */
  WSYNC_ERR_BUSY = -5,
  /**
   * A number, a name or a size exceeds a limit of the library.
   */
  WSYNC_ERR_LIMIT_EXCEEDED = -6,
  /**
   * No tensor, buffer, rank or slot of that name or number.
   */
  WSYNC_ERR_NOT_FOUND = -7,
  /**
   * The handle is not in a state that allows the call.
   */
  WSYNC_ERR_INVALID_STATE = -8,
  /**
   * Ranks came with different plans, versions or flags.
   */
  WSYNC_ERR_PLAN_MISMATCH = -20,
  /**
   * A layout is ill-formed, or two layouts do not fit each other.
   */
  WSYNC_ERR_LAYOUT_INVALID = -21,
  /**
   * Serialised bytes are damaged, truncated or foreign.
   */
  WSYNC_ERR_CORRUPT = -22,
  /**
   * Made by a library that this one does not understand.
   */
  WSYNC_ERR_VERSION_MISMATCH = -23,
  /**
   * A bound buffer differs from the planned one, or is missing.
   */
  WSYNC_ERR_BUFFER_MISMATCH = -24,
  /**
   * The staging budget cannot hold the smallest piece.
   */
  WSYNC_ERR_STAGING_TOO_SMALL = -25,
  /**
   * Delivered bytes differ from the sent ones.
   */
  WSYNC_ERR_CHECKSUM_MISMATCH = -26,
  /**
   * The chosen strategy cannot do what was asked; another can.
   */
  WSYNC_ERR_INFEASIBLE = -27,
  /**
   * A library that is loaded at run time was not found.
   */
  WSYNC_ERR_LIBRARY_NOT_FOUND = -40,
  /**
   * It was found, and is too old.
   */
  WSYNC_ERR_LIBRARY_TOO_OLD = -41,
  /**
   * A file, socket or other system object failed; see native_code.
   */
  WSYNC_ERR_IO = -42,
  /**
   * No memory, or no space for shared memory.
   */
  WSYNC_ERR_OUT_OF_MEMORY = -43,
  /**
   * The operating system lacks something.
   */
  WSYNC_ERR_SYSTEM = -44,
  /**
   * A peer did not agree in time; no byte moved.
   */
  WSYNC_ERR_AGREEMENT_TIMEOUT = -60,
  /**
   * A peer refused; no byte moved.
   */
  WSYNC_ERR_REFUSED = -61,
  /**
   * A peer died.
   */
  WSYNC_ERR_PEER_LOST = -80,
  /**
   * A peer made no progress within the stall deadline.
   */
  WSYNC_ERR_STALLED = -81,
  /**
   * Somebody called abort.
   */
  WSYNC_ERR_ABORTED = -82,
  /**
   * The peers did not meet in time.
   */
  WSYNC_ERR_MEET_TIMEOUT = -83,
  /**
   * Bytes on the wire were not the expected ones.
   */
  WSYNC_ERR_PROTOCOL = -84,
  /**
   * An invariant of the library is broken. The handle is poisoned.
   */
  WSYNC_ERR_INTERNAL = -100,
  /**
   * An earlier internal error made this handle unusable; destroy it.
   */
  WSYNC_ERR_POISONED = -101,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum wsync_status wsync_status;
#else
typedef int32_t wsync_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Where a native error code comes from.
 *
 * Since: 0.1
 */
enum wsync_native_domain
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  WSYNC_NATIVE_DOMAIN_NONE = 0,
  /**
   * An errno of the operating system.
   */
  WSYNC_NATIVE_DOMAIN_ERRNO = 1,
  /**
   * An ncclResult_t.
   */
  WSYNC_NATIVE_DOMAIN_NCCL = 2,
  /**
   * A cudaError_t.
   */
  WSYNC_NATIVE_DOMAIN_CUDA = 3,
  /**
   * A ucs_status_t.
   */
  WSYNC_NATIVE_DOMAIN_UCX = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum wsync_native_domain wsync_native_domain;
#else
typedef uint32_t wsync_native_domain;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Which side of a plan a buffer belongs to.
 *
 * Since: 0.1
 */
enum wsync_side
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Training: bytes are read.
   */
  WSYNC_SIDE_SOURCE = 1,
  /**
   * Inference: bytes are written.
   */
  WSYNC_SIDE_DESTINATION = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum wsync_side wsync_side;
#else
typedef uint32_t wsync_side;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Where a buffer lives.
 *
 * Since: 0.1
 */
enum wsync_memory
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Ordinary host memory.
   */
  WSYNC_MEMORY_HOST = 0,
  /**
   * Page-locked host memory.
   */
  WSYNC_MEMORY_PINNED_HOST = 1,
  /**
   * Memory of the GPU whose number stands beside it.
   */
  WSYNC_MEMORY_DEVICE = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum wsync_memory wsync_memory;
#else
typedef uint32_t wsync_memory;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Type codes of wsync_dtype, as DLPack numbers them.
 *
 * Since: 0.1
 */
enum wsync_dtype_code
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint8_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  WSYNC_DTYPE_CODE_INT = 0,
  WSYNC_DTYPE_CODE_UINT = 1,
  WSYNC_DTYPE_CODE_FLOAT = 2,
  WSYNC_DTYPE_CODE_BFLOAT = 4,
  WSYNC_DTYPE_CODE_COMPLEX = 5,
  WSYNC_DTYPE_CODE_BOOL = 6,
  WSYNC_DTYPE_CODE_FLOAT8_E3M4 = 7,
  WSYNC_DTYPE_CODE_FLOAT8_E4M3 = 8,
  WSYNC_DTYPE_CODE_FLOAT8_E4M3B11FNUZ = 9,
  WSYNC_DTYPE_CODE_FLOAT8_E4M3FN = 10,
  WSYNC_DTYPE_CODE_FLOAT8_E4M3FNUZ = 11,
  WSYNC_DTYPE_CODE_FLOAT8_E5M2 = 12,
  WSYNC_DTYPE_CODE_FLOAT8_E5M2FNUZ = 13,
  WSYNC_DTYPE_CODE_FLOAT8_E8M0FNU = 14,
  WSYNC_DTYPE_CODE_FLOAT6_E2M3FN = 15,
  WSYNC_DTYPE_CODE_FLOAT6_E3M2FN = 16,
  WSYNC_DTYPE_CODE_FLOAT4_E2M1FN = 17,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum wsync_dtype_code wsync_dtype_code;
#else
typedef uint8_t wsync_dtype_code;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What became of destination memory. Anything but COMPLETE must not serve
 * the new version; anything but UNTOUCHED must not go on serving the old one.
 *
 * Since: 0.1
 */
enum wsync_outcome
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Nothing was written; the old version is intact.
   */
  WSYNC_OUTCOME_UNTOUCHED = 1,
  /**
   * Everything was written; the new version may serve.
   */
  WSYNC_OUTCOME_COMPLETE = 2,
  /**
   * Something may have been written, but not everything.
   */
  WSYNC_OUTCOME_TORN = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum wsync_outcome wsync_outcome;
#else
typedef uint32_t wsync_outcome;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Where a request is. It only moves down this list, until it is prepared
 * again.
 *
 * Since: 0.1
 */
enum wsync_state
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Never prepared.
   */
  WSYNC_STATE_IDLE = 0,
  /**
   * The ranks are agreeing.
   */
  WSYNC_STATE_PREPARING = 1,
  /**
   * All ranks agree; start may be called.
   */
  WSYNC_STATE_READY = 2,
  /**
   * Bytes are moving.
   */
  WSYNC_STATE_RUNNING = 3,
  /**
   * This rank is done; the ranks are telling each other how it ended.
   */
  WSYNC_STATE_SETTLING = 4,
  /**
   * Ended well.
   */
  WSYNC_STATE_DONE = 5,
  /**
   * Ended otherwise; test, wait and report say why.
   */
  WSYNC_STATE_FAILED = 6,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum wsync_state wsync_state;
#else
typedef uint32_t wsync_state;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How much is logged. Each level includes the ones before.
 *
 * Since: 0.1
 */
enum wsync_log_level
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  WSYNC_LOG_LEVEL_OFF = 0,
  /**
   * Something failed.
   */
  WSYNC_LOG_LEVEL_ERROR = 1,
  /**
   * Something is odd, and goes on.
   */
  WSYNC_LOG_LEVEL_WARN = 2,
  /**
   * What happens once in a session.
   */
  WSYNC_LOG_LEVEL_INFO = 3,
  /**
   * What happens once in a request, and more.
   */
  WSYNC_LOG_LEVEL_DEBUG = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum wsync_log_level wsync_log_level;
#else
typedef uint32_t wsync_log_level;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How ranks are mapped.
 *
 * Since: 0.1
 */
enum wsync_mapping_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Destination TP is a multiple of source TP: pairs, then forwards inside
   * each replica.
   */
  WSYNC_MAPPING_KIND_TWO_STAGE = 1,
  /**
   * One TP divides the other: pairs alone.
   */
  WSYNC_MAPPING_KIND_SINGLE_STAGE = 2,
  /**
   * Mixture of experts: routed experts are regrouped inside the source.
   */
  WSYNC_MAPPING_KIND_EXPERT = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum wsync_mapping_kind wsync_mapping_kind;
#else
typedef uint32_t wsync_mapping_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Flags of wsync_mapping_options.
 *
 * Models are colocated if any device is on both sides, unless COLOCATED or
 * APART says what they are. If the source TP is odd, mappings of the kinds
 * SINGLE_STAGE and EXPERT give source copies to the replicas of colocated
 * models from the last copy to the first; nothing else follows from it.
 *
 * Since: 0.1
 */
enum wsync_mapping_flag
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * The models are colocated, whatever the devices say.
   */
  WSYNC_MAPPING_FLAG_COLOCATED = 1,
  /**
   * Pairs within one device are as good as any other.
   */
  WSYNC_MAPPING_FLAG_KEEP_SAME_DEVICE = 2,
  /**
   * The destination of an expert mapping is vLLM, not Megatron.
   */
  WSYNC_MAPPING_FLAG_VLLM = 4,
  /**
   * The models are not colocated, whatever the devices say.
   */
  WSYNC_MAPPING_FLAG_APART = 8,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum wsync_mapping_flag wsync_mapping_flag;
#else
typedef uint32_t wsync_mapping_flag;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * A list of pairs inside a mapping.
 *
 * Since: 0.1
 */
enum wsync_mapping_list
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Stage 1, source to destination, in the order of the sends.
   */
  WSYNC_MAPPING_LIST_PAIRS = 1,
  /**
   * Stage 2, within the destination, in the order of the sends. Empty
   * unless the mapping has two stages.
   */
  WSYNC_MAPPING_LIST_FORWARDS = 2,
  /**
   * Routed experts alone; empty if they travel with the rest.
   */
  WSYNC_MAPPING_LIST_ROUTED = 3,
  /**
   * Pairs of stage 1 within one device: two ranks that exchange a message
   * inside it, or one rank of a plan, which copies locally.
   */
  WSYNC_MAPPING_LIST_SAME_DEVICE = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum wsync_mapping_list wsync_mapping_list;
#else
typedef uint32_t wsync_mapping_list;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How ranks bring their routed experts together before stage 1.
 *
 * Since: 0.1
 */
enum wsync_regroup_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * They do not, or a mapping of a single stage leaves it open.
   */
  WSYNC_REGROUP_KIND_NONE = 0,
  /**
   * Each rank ends up with the slice of one destination rank.
   */
  WSYNC_REGROUP_KIND_ALL_TO_ALL = 1,
  /**
   * Each rank ends up with its tensor share of all experts of the group.
   */
  WSYNC_REGROUP_KIND_ALL_GATHER = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum wsync_regroup_kind wsync_regroup_kind;
#else
typedef uint32_t wsync_regroup_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Which way bytes take.
 *
 * Since: 0.1
 */
enum wsync_strategy
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  WSYNC_STRATEGY_DEFAULT = 0,
  /**
   * From a holder straight to the needer.
   */
  WSYNC_STRATEGY_DIRECT = 1,
  /**
   * As the two-stage rank mapping says: to one member of each
   * weight-mapping group, which forwards to the others.
   */
  WSYNC_STRATEGY_TWO_STAGE = 2,
  /**
   * Each byte enters an NVLink domain once; the ranks there exchange what
   * several of them need.
   */
  WSYNC_STRATEGY_RELAY = 3,
  /**
   * Only some copies leave the source; the ranks that get them pass them on
   * to the others.
   */
  WSYNC_STRATEGY_FANOUT = 4,
  /**
   * Whichever of these (but TWO_STAGE), with whichever source rule, spread,
   * source relay and bucket count, is predicted to be fastest on the topology. The plan
   * keeps what was decided.
   */
  WSYNC_STRATEGY_AUTO = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum wsync_strategy wsync_strategy;
#else
typedef uint32_t wsync_strategy;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Which of several holders sends.
 *
 * Since: 0.1
 */
enum wsync_source_rule
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  WSYNC_SOURCE_RULE_DEFAULT = 0,
  /**
   * The wrap-around cut: equal loads, fewest pairs. The default.
   */
  WSYNC_SOURCE_RULE_WRAP = 1,
  /**
   * The holder moves on with every item: more pairs, each with a share of
   * every tensor.
   */
  WSYNC_SOURCE_RULE_ROTATE = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum wsync_source_rule wsync_source_rule;
#else
typedef uint32_t wsync_source_rule;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How the NVLink domains of one copy pass it on to each other.
 *
 * Since: 0.1
 */
enum wsync_spread
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  WSYNC_SPREAD_DEFAULT = 0,
  /**
   * The copy is scattered over all of them, and each sends its part to all
   * others: two hops, many peers. The default.
   */
  WSYNC_SPREAD_SCATTER = 1,
  /**
   * The first takes it in whole, and each passes it on to the next, bucket
   * by bucket: as many hops as domains, one peer.
   */
  WSYNC_SPREAD_CHAIN = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum wsync_spread wsync_spread;
#else
typedef uint32_t wsync_spread;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Which bytes travel first.
 *
 * Since: 0.1
 */
enum wsync_order
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  WSYNC_ORDER_DEFAULT = 0,
  /**
   * A step carries the same fraction of what every pair exchanges: all
   * links work all the time, and the layers of all stages come side by
   * side. The default.
   */
  WSYNC_ORDER_FRACTION = 1,
  /**
   * A step carries the next layers: early layers are complete early
   * (wsync_plan_tensor_last_step), and links to later ones stand idle
   * meanwhile.
   */
  WSYNC_ORDER_LAYER = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum wsync_order wsync_order;
#else
typedef uint32_t wsync_order;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Which data plane.
 *
 * Since: 0.1
 */
enum wsync_transport_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Ranks as threads of one process.
   */
  WSYNC_TRANSPORT_KIND_LOOPBACK = 1,
  /**
   * Ranks as processes on one host, host memory.
   */
  WSYNC_TRANSPORT_KIND_SHM = 2,
  /**
   * Ranks on GPUs, through NCCL.
   */
  WSYNC_TRANSPORT_KIND_NCCL = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum wsync_transport_kind wsync_transport_kind;
#else
typedef uint32_t wsync_transport_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Whose communicator an NCCL transport works with.
 *
 * Since: 0.1
 */
enum wsync_nccl_mode
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * One of its own, made from a unique id. The default without `comm`.
   */
  WSYNC_NCCL_MODE_OWN = 1,
  /**
   * One of its own, split off `comm` while the ranks meet. All ranks of
   * `comm` have to come; it must be idle, and not be used until the ranks
   * have met. Afterwards nothing is shared. The default with `comm`.
   */
  WSYNC_NCCL_MODE_SPLIT = 2,
  /**
   * `comm` itself, without further memory. From the start of a request to
   * its end nobody else issues anything on it or asks for its state. After
   * a failure it is revoked (ncclCommRevoke) where NCCL can; else `on_abort`
   * is called. It is never aborted or destroyed by the library, and
   * outlives the transport.
   */
  WSYNC_NCCL_MODE_DIRECT = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum wsync_nccl_mode wsync_nccl_mode;
#else
typedef uint32_t wsync_nccl_mode;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Which ranks of a host exchange bytes through GPU memory that one process has
 * exported to the other (CUDA IPC), and not through NCCL. NCCL takes one rank
 * per GPU; where several are on one, the lowest is its NCCL rank.
 *
 * Since: 0.1
 */
enum wsync_nccl_ipc
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * None: several ranks on a GPU are refused, except where NCCL takes them
   * (NCCL_MULTI_RANK_GPU_ENABLE=1 on all of them, since NCCL 2.30.3).
   */
  WSYNC_NCCL_IPC_OFF = 1,
  /**
   * Ranks on one GPU, and others of which one is not an NCCL rank; also
   * where NCCL would take several ranks of a GPU.
   */
  WSYNC_NCCL_IPC_DEVICE = 2,
  /**
   * Any two ranks of a host. Their GPUs have to reach each other's memory.
   */
  WSYNC_NCCL_IPC_DOMAIN = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum wsync_nccl_ipc wsync_nccl_ipc;
#else
typedef uint32_t wsync_nccl_ipc;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Flags of wsync_request_options.
 *
 * Since: 0.1
 */
enum wsync_request_flag
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Compare the digests of sent and delivered bytes before it is COMPLETE.
   */
  WSYNC_REQUEST_FLAG_VERIFY = 1,
  /**
   * Agree and report, but move nothing.
   */
  WSYNC_REQUEST_FLAG_DRY_RUN = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum wsync_request_flag wsync_request_flag;
#else
typedef uint32_t wsync_request_flag;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * One side's description: which rank holds which part of which tensor, and
 * where. Immutable; may be used by any number of threads.
 *
 * wsync_layout_create_from_json, wsync_layout_create_from_views,
 * wsync_layout_create_from_bytes, wsync_layout_from_model, wsync_layout_merge,
 * wsync_layout_serialize, wsync_layout_to_json, wsync_layout_check,
 * wsync_layout_check_json, wsync_layout_describe, wsync_layout_rank_count,
 * wsync_layout_tensor_count, wsync_layout_copy_count,
 * wsync_layout_buffer_count, wsync_layout_buffer_at, wsync_layout_destroy.
 *
 * Since: 0.1
 */
typedef struct wsync_layout wsync_layout;

/**
 * Who sends to whom, as two-stage weight synchronisation maps ranks, without
 * looking at a tensor. Immutable; may be used by any number of threads.
 *
 * Ranks are numbered source first: source actor k is rank k, destination
 * actor k is rank source_device_count + k.
 *
 * wsync_mapping_create, wsync_mapping_pairs, wsync_mapping_sends,
 * wsync_mapping_receives, wsync_mapping_loads, wsync_mapping_moved,
 * wsync_mapping_group_size, wsync_mapping_regroup_kind,
 * wsync_mapping_regroup_count, wsync_mapping_regroup_at,
 * wsync_mapping_report, wsync_mapping_destroy.
 *
 * Since: 0.1
 */
typedef struct wsync_mapping wsync_mapping;

/**
 * How bytes get from one layout to the other: the two layouts and a small
 * decision. Equal wherever it is made from equal input. Immutable; may be
 * used by any number of threads.
 *
 * wsync_plan_create, wsync_plan_create_from_bytes, wsync_plan_replan,
 * wsync_plan_select, wsync_plan_serialize, wsync_plan_fingerprint, wsync_plan_verify,
 * wsync_plan_rank_count, wsync_plan_ranks, wsync_plan_tensor_count,
 * wsync_plan_step_count, wsync_plan_program_info, wsync_plan_program_infos,
 * wsync_plan_buffer_count, wsync_plan_buffer_at, wsync_plan_tensor_last_step,
 * wsync_plan_rank_ops, wsync_plan_origin, wsync_plan_certificate,
 * wsync_plan_simulate, wsync_plan_report, wsync_plan_diff, wsync_plan_destroy.
 *
 * Since: 0.1
 */
typedef struct wsync_plan wsync_plan;

/**
 * One execution of a loaded plan; made once and used for every version.
 *
 *   IDLE --prepare--> PREPARING --> READY --start--> RUNNING --> SETTLING
 *     --> DONE or FAILED, either of which may be prepared again
 *
 * prepare, start and submit are exclusive; everything else may be called by
 * any number of threads, during those too. Does not survive fork.
 *
 * wsync_request_create, wsync_request_prepare, wsync_request_wait_ready,
 * wsync_request_start, wsync_request_submit, wsync_request_test,
 * wsync_request_wait, wsync_request_state, wsync_request_outcome,
 * wsync_request_step_count, wsync_request_steps_done, wsync_request_report,
 * wsync_request_tensor_digest, wsync_request_destroy.
 *
 * Since: 0.1
 */
typedef struct wsync_request wsync_request;

/**
 * One rank's buffers, bound by name, and the plans it has loaded. Exclusive:
 * one call at a time, but for abort. Does not survive fork.
 *
 * wsync_session_create, wsync_session_bind, wsync_session_bind_many,
 * wsync_session_unbind, wsync_session_load, wsync_session_unload,
 * wsync_session_finalize, wsync_session_abort, wsync_session_destroy.
 *
 * Since: 0.1
 */
typedef struct wsync_session wsync_session;

/**
 * What stands between the ranks: hosts, NVLink domains, NICs, the network
 * above them, and where each rank is. Immutable; may be used by any number of
 * threads.
 *
 * wsync_topology_create, wsync_topology_create_from_json,
 * wsync_topology_create_from_places, wsync_topology_place,
 * wsync_topology_to_json, wsync_topology_site, wsync_topology_destroy.
 *
 * Since: 0.1
 */
typedef struct wsync_topology wsync_topology;

/**
 * The way of one rank to all others: a data plane and a small control
 * channel. Used by any number of sessions; outlives them. Owns threads, and
 * does not survive fork.
 *
 * wsync_transport_create, wsync_transport_greeting, wsync_transport_meet,
 * wsync_transport_rendezvous, wsync_transport_nccl_id,
 * wsync_transport_nccl_version, wsync_transport_rank,
 * wsync_transport_rank_count, wsync_transport_status, wsync_transport_abort,
 * wsync_transport_finalize, wsync_transport_destroy.
 *
 * Since: 0.1
 */
typedef struct wsync_transport wsync_transport;

/**
 * Why a call failed. The caller owns the record, sets struct_size, and may
 * pass NULL instead.
 *
 * It is written only when a call fails; status and message then belong to
 * the value that the call returned. The message is one line and names the
 * thing and the numbers.
 *
 * Since: 0.1
 */
typedef struct wsync_error {
  /**
   * sizeof(wsync_error), set by the caller.
   */
  size_t struct_size;
  /**
   * The wsync_status that the call returned.
   */
  int32_t status;
  /**
   * The error code of a foreign library, verbatim; 0 if there is none.
   */
  int32_t native_code;
  /**
   * A wsync_native_domain: whose code that is.
   */
  uint32_t native_domain;
  /**
   * The rank that caused the failure, or WSYNC_RANK_NONE.
   */
  uint32_t rank;
  /**
   * A sentence for a person, NUL-terminated.
   */
  char message[496];
} wsync_error;

/**
 * Takes one log line: UTF-8, without a line break, valid during the call.
 *
 * Called from any thread, several at a time. It must not call the library,
 * must not unwind and must not longjmp.
 *
 * Since: 0.1
 */
typedef void (*wsync_log_fn)(void *user,
                             uint32_t level,
                             const char *message);

/**
 * One environment variable. All text is static.
 *
 * Since: 0.1
 */
typedef struct wsync_env_info {
  /**
   * sizeof(wsync_env_info), set by the caller.
   */
  size_t struct_size;
  /**
   * Its name, such as "WSYNC_LOG".
   */
  const char *name;
  /**
   * What holds if it is not set.
   */
  const char *default_value;
  /**
   * What holds in this process.
   */
  const char *value;
  /**
   * One sentence on what it does.
   */
  const char *meaning;
  /**
   * 1 if it is set, else 0.
   */
  uint32_t is_set;
  /**
   * 0.
   */
  uint32_t reserved;
} wsync_env_info;

/**
 * Text inside an array or a struct: UTF-8, not necessarily NUL-terminated.
 *
 * Since: 0.1
 */
typedef struct wsync_text {
  /**
   * May be NULL if bytes is 0.
   */
  const char *ptr;
  /**
   * Of the text, without a NUL.
   */
  size_t bytes;
} wsync_text;

/**
 * An element type, laid out like a DLDataType. One element is bits * lanes
 * bits and always whole bytes: a packed pair of 4-bit values is {17, 4, 2}.
 *
 * Since: 0.1
 */
typedef struct wsync_dtype {
  /**
   * A wsync_dtype_code.
   */
  uint8_t code;
  /**
   * Bits of one lane.
   */
  uint8_t bits;
  /**
   * Lanes of one element, at least 1.
   */
  uint16_t lanes;
} wsync_dtype;

/**
 * A canonical tensor of a layout that is given view by view.
 *
 * Since: 0.1
 */
typedef struct wsync_tensor {
  /**
   * Its canonical name, such as "model.layers.0.self_attn.q_proj.weight".
   */
  struct wsync_text name;
  /**
   * Axes, at most WSYNC_DIM_COUNT_MAX.
   */
  uint32_t dim_count;
  /**
   * The type in which the tensor is defined.
   */
  struct wsync_dtype dtype;
  /**
   * Indices along each axis; 0 beyond dim_count.
   */
  uint64_t shape[8];
  /**
   * Indices along each axis that no cut may split, such as the rows of a
   * head; 0 is 1.
   */
  uint64_t granule[8];
} wsync_tensor;

/**
 * A named range of local memory of a layout that is given view by view. The
 * memory itself is bound later, by name.
 *
 * Since: 0.1
 */
typedef struct wsync_buffer {
  /**
   * Unique among the rank's buffers; memory is bound by it.
   */
  struct wsync_text name;
  /**
   * Its size.
   */
  uint64_t bytes;
  /**
   * A wsync_memory.
   */
  uint32_t memory;
  /**
   * The GPU, if memory is WSYNC_MEMORY_DEVICE.
   */
  uint32_t device;
} wsync_buffer;

/**
 * A box of a tensor and where it lies in a buffer: element (i0, i1, ..) is at
 * offset + (i0 - lo[0]) * strides[0] + (i1 - lo[1]) * strides[1] and so on.
 *
 * Since: 0.1
 */
typedef struct wsync_view {
  /**
   * Index into the tensors given beside it.
   */
  uint32_t tensor;
  /**
   * Index into the buffers given beside it.
   */
  uint32_t buffer;
  /**
   * Bytes from the start of the buffer to the first element of the box.
   */
  uint64_t offset;
  /**
   * First index of the box along each axis; 0 beyond the tensor's axes.
   */
  uint64_t lo[8];
  /**
   * One more than its last index along each axis; 0 beyond.
   */
  uint64_t hi[8];
  /**
   * Bytes between neighbours along each axis, which may be negative; all 0
   * means without gaps, the last axis innermost.
   */
  int64_t strides[8];
  /**
   * The type in memory; {0, 0, 0} is the tensor's own.
   */
  struct wsync_dtype dtype;
  /**
   * 0.
   */
  uint32_t reserved;
} wsync_view;

/**
 * Another name of a tensor, such as a tied embedding's.
 *
 * Since: 0.1
 */
typedef struct wsync_alias {
  /**
   * The other name.
   */
  struct wsync_text alias;
  /**
   * The tensor's name.
   */
  struct wsync_text name;
} wsync_alias;

/**
 * Everything that one rank holds. Each stride is the sizeof of its element.
 *
 * Since: 0.1
 */
typedef struct wsync_rank_views {
  /**
   * sizeof(wsync_rank_views).
   */
  size_t struct_size;
  /**
   * Whose views these are.
   */
  uint32_t rank;
  /**
   * The copy (replica) this rank belongs to; any number that its other
   * ranks use too.
   */
  uint32_t copy;
  /**
   * The tensors that views speak of, each with its full shape.
   */
  const struct wsync_tensor *tensors;
  /**
   * How many there are.
   */
  size_t tensor_count;
  /**
   * sizeof(wsync_tensor).
   */
  size_t tensor_stride;
  /**
   * The memory that views lie in.
   */
  const struct wsync_buffer *buffers;
  /**
   * How many there are.
   */
  size_t buffer_count;
  /**
   * sizeof(wsync_buffer).
   */
  size_t buffer_stride;
  /**
   * Which box of which tensor lies where in which buffer.
   */
  const struct wsync_view *views;
  /**
   * How many there are.
   */
  size_t view_count;
  /**
   * sizeof(wsync_view).
   */
  size_t view_stride;
  /**
   * Tensors that are others by another name, as tied embeddings are.
   */
  const struct wsync_alias *aliases;
  /**
   * How many there are.
   */
  size_t alias_count;
  /**
   * sizeof(wsync_alias).
   */
  size_t alias_stride;
} wsync_rank_views;

/**
 * What a rank needs to know to allocate and bind one buffer.
 *
 * Since: 0.1
 */
typedef struct wsync_buffer_info {
  /**
   * sizeof(wsync_buffer_info), set by the caller.
   */
  size_t struct_size;
  /**
   * Bytes that the buffer must have.
   */
  uint64_t bytes;
  /**
   * A wsync_side, or 0 if a layout was asked, which may serve as either.
   */
  uint32_t side;
  /**
   * A wsync_memory.
   */
  uint32_t memory;
  /**
   * The GPU, if memory is WSYNC_MEMORY_DEVICE; else 0.
   */
  uint32_t device;
  /**
   * Bytes of the name, without its NUL.
   */
  uint32_t name_bytes;
  /**
   * The name, NUL-terminated.
   */
  char name[1032];
} wsync_buffer_info;

/**
 * Consecutive hosts that are built alike. Speeds are bytes per second, each
 * way.
 *
 * Since: 0.1
 */
typedef struct wsync_host_group {
  /**
   * Hosts; 0, in the last group only, is as many as the ranks need.
   */
  uint32_t count;
  /**
   * GPUs of a host; 0 is 8.
   */
  uint32_t gpus;
  /**
   * NICs of a host, a divisor or a multiple of gpus; 0 is one per GPU.
   */
  uint32_t nics;
  /**
   * Consecutive hosts that form one NVLink domain; 0 is 1.
   */
  uint32_t domain_hosts;
  /**
   * Of one NIC; 0 is 400 Gb/s.
   */
  uint64_t nic_bytes_per_s;
  /**
   * Of one GPU inside its NVLink domain; 0 is 450 GB/s.
   */
  uint64_t nvlink_bytes_per_s;
} wsync_host_group;

/**
 * A list of ranks that a call reads.
 *
 * Since: 0.1
 */
typedef struct wsync_rank_list {
  /**
   * May be NULL if count is 0.
   */
  const uint32_t *ranks;
  /**
   * How many there are.
   */
  size_t count;
} wsync_rank_list;

/**
 * Ranks on consecutive GPUs, in the order of the list.
 *
 * Since: 0.1
 */
typedef struct wsync_placement_run {
  /**
   * In this order on GPUs from `gpu` on.
   */
  struct wsync_rank_list ranks;
  /**
   * The GPU of the first rank, counted over all hosts from 0.
   */
  uint32_t gpu;
  /**
   * Ranks that share a GPU; 0 is 1.
   */
  uint32_t ranks_per_gpu;
} wsync_placement_run;

/**
 * Ranks that are slower than their host, or drained.
 *
 * Since: 0.1
 */
typedef struct wsync_speed_factor {
  /**
   * Whose links are slower.
   */
  struct wsync_rank_list ranks;
  /**
   * Of the NIC's speed, 1 to 100; 0 is 100.
   */
  uint32_t nic_percent;
  /**
   * Of the GPU's NVLink speed, 1 to 100; 0 is 100.
   */
  uint32_t nvlink_percent;
  /**
   * Not 0: these ranks should send nothing that others hold too.
   */
  uint32_t is_drained;
  /**
   * 0.
   */
  uint32_t reserved;
} wsync_speed_factor;

/**
 * A level of the network above the NICs, such as leaf switches or pods.
 *
 * Since: 0.1
 */
typedef struct wsync_fabric_cut {
  /**
   * What reports call it, such as "pods".
   */
  struct wsync_text name;
  /**
   * Consecutive hosts of one cell.
   */
  uint32_t hosts;
  /**
   * Not 0: every rail of these hosts is a cell of its own.
   */
  uint32_t is_by_rail;
  /**
   * Of a cell, to and from all others.
   */
  uint64_t out_bytes_per_s;
  /**
   * The other way.
   */
  uint64_t in_bytes_per_s;
} wsync_fabric_cut;

/**
 * What a topology is made of. Each stride is the sizeof of its element.
 *
 * Since: 0.1
 */
typedef struct wsync_topology_options {
  /**
   * sizeof(wsync_topology_options).
   */
  size_t struct_size;
  /**
   * None means hosts of 8 GPUs, as many as the ranks need.
   */
  const struct wsync_host_group *hosts;
  /**
   * How many groups there are.
   */
  size_t host_count;
  /**
   * sizeof(wsync_host_group).
   */
  size_t host_stride;
  /**
   * None means source ranks first, then destination ranks, on hosts of
   * their own.
   */
  const struct wsync_placement_run *placement;
  /**
   * How many there are.
   */
  size_t placement_count;
  /**
   * sizeof(wsync_placement_run).
   */
  size_t placement_stride;
  /**
   * Ranks that are slower than their hosts say; none is usual.
   */
  const struct wsync_speed_factor *speeds;
  /**
   * How many there are.
   */
  size_t speed_count;
  /**
   * sizeof(wsync_speed_factor).
   */
  size_t speed_stride;
  /**
   * Levels of the network above the NICs; none is a network that never binds.
   */
  const struct wsync_fabric_cut *cuts;
  /**
   * How many there are.
   */
  size_t cut_count;
  /**
   * sizeof(wsync_fabric_cut).
   */
  size_t cut_stride;
  /**
   * By which every message is late; 0 is 20 us.
   */
  uint64_t latency_ns;
  /**
   * Bytes that a GPU packs or unpacks in a second; 0 is 1.34 TB/s.
   */
  uint64_t pack_bytes_per_s;
} wsync_topology_options;

/**
 * Where one rank says that it is.
 *
 * Since: 0.1
 */
typedef struct wsync_rank_place {
  /**
   * sizeof(wsync_rank_place).
   */
  size_t struct_size;
  /**
   * Whose place this is.
   */
  uint32_t rank;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * Equal on all ranks of a host, and on no others; empty is the boot id of
   * this host.
   */
  struct wsync_text host;
  /**
   * The uuid of the GPU; ranks of one uuid share it. Empty is the GPU that
   * is current on the calling thread.
   */
  struct wsync_text device;
  /**
   * Of the NVLink fabric, where it spans hosts; else empty.
   */
  struct wsync_text domain;
  /**
   * Names of the NICs near the GPU: NICs of one name are one rail on all
   * hosts, and rails are in the order of these names. With an empty device,
   * none are those that share most PCI bridges with the GPU.
   */
  const struct wsync_text *nics;
  /**
   * How many there are.
   */
  size_t nic_count;
} wsync_rank_place;

/**
 * A range of bytes that a call reads.
 *
 * Since: 0.1
 */
typedef struct wsync_bytes {
  /**
   * May be NULL if bytes is 0.
   */
  const void *ptr;
  /**
   * How many there are at `ptr`.
   */
  size_t bytes;
} wsync_bytes;

/**
 * Where a rank sits. Numbers count over the whole topology from 0.
 *
 * Since: 0.1
 */
typedef struct wsync_site {
  /**
   * sizeof(wsync_site), set by the caller.
   */
  size_t struct_size;
  /**
   * Its number, counted over all hosts.
   */
  uint32_t gpu;
  /**
   * Its number.
   */
  uint32_t host;
  /**
   * The NVLink domain.
   */
  uint32_t domain;
  /**
   * Index of the GPU's NIC within its host.
   */
  uint32_t rail;
  /**
   * Of the GPU's NICs together, each way; 0 if it has none.
   */
  uint64_t nic_bytes_per_s;
  /**
   * Of the GPU, each way.
   */
  uint64_t nvlink_bytes_per_s;
} wsync_site;

/**
 * What a mapping is made from. Sizes of 0 are 1.
 *
 * Since: 0.1
 */
typedef struct wsync_mapping_options {
  /**
   * sizeof(wsync_mapping_options).
   */
  size_t struct_size;
  /**
   * A wsync_mapping_kind.
   */
  uint32_t kind;
  /**
   * Any of wsync_mapping_flag.
   */
  uint32_t flags;
  /**
   * Tensor parallel.
   */
  uint32_t source_tp;
  /**
   * Pipeline stages.
   */
  uint32_t source_pp;
  /**
   * Expert parallel.
   */
  uint32_t source_ep;
  /**
   * Data parallel.
   */
  uint32_t source_dp;
  /**
   * Context parallel.
   */
  uint32_t source_cp;
  /**
   * Tensor parallel, of one replica.
   */
  uint32_t destination_tp;
  /**
   * Pipeline stages of one replica.
   */
  uint32_t destination_pp;
  /**
   * Expert parallel, of one replica.
   */
  uint32_t destination_ep;
  /**
   * Replicas of destination_tp * destination_pp * destination_ep ranks.
   */
  uint32_t replica_count;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * Device of every source actor. Devices are numbered over all hosts.
   */
  const uint32_t *source_devices;
  /**
   * How many actors there are.
   */
  size_t source_device_count;
  /**
   * Device of every destination actor.
   */
  const uint32_t *destination_devices;
  /**
   * How many actors there are.
   */
  size_t destination_device_count;
  /**
   * One list per source copy, [PP][TP] or with all expert rows [PP][EP][TP]
   * (a list may hold several copies, [PP][EP][CP][TP] each); none means
   * Megatron's order, rank = t + TP*(c + CP*(e + EP*(d + DP*p))).
   */
  const struct wsync_rank_list *source_ranks;
  /**
   * How many lists there are.
   */
  size_t source_list_count;
  /**
   * One list per copy that routed experts come from, [PP][EP][TP]; none
   * means source_ranks. Of EXPERT mappings alone.
   */
  const struct wsync_rank_list *expert_source_ranks;
  /**
   * How many lists there are.
   */
  size_t expert_source_list_count;
  /**
   * One list per replica, each [PP][EP][TP]; none means consecutive ranks.
   */
  const struct wsync_rank_list *destination_ranks;
  /**
   * How many lists there are.
   */
  size_t destination_list_count;
} wsync_mapping_options;

/**
 * One sender and one receiver.
 *
 * Since: 0.1
 */
typedef struct wsync_pair {
  /**
   * The rank that has the bytes.
   */
  uint32_t sender;
  /**
   * The rank that gets them.
   */
  uint32_t receiver;
} wsync_pair;

/**
 * How many pairs end at a destination rank.
 *
 * Since: 0.1
 */
typedef struct wsync_rank_load {
  /**
   * The destination rank.
   */
  uint32_t rank;
  /**
   * Pairs that end there.
   */
  uint32_t pair_count;
} wsync_rank_load;

/**
 * A pair of stage 1 that was moved to avoid a shared device.
 *
 * Since: 0.1
 */
typedef struct wsync_moved_pair {
  /**
   * The rank that has the bytes.
   */
  uint32_t sender;
  /**
   * The rank that gets them.
   */
  uint32_t receiver;
  /**
   * The receiver that load balance alone would have chosen; it is on the
   * sender's device.
   */
  uint32_t avoided;
} wsync_moved_pair;

/**
 * How WSYNC_STRATEGY_TWO_STAGE maps ranks. A side whose TP is 0 is read from
 * the meshes of its layout: axis tp, the axis that numbers stages, and all
 * others as copies. Devices are those of the topology.
 *
 * Since: 0.1
 */
typedef struct wsync_two_stage_options {
  /**
   * sizeof(wsync_two_stage_options).
   */
  size_t struct_size;
  /**
   * Not 0: pairs within one device are avoided by choosing another
   * receiver. 0: they are as good as any other. Either way a rank that is on
   * both sides copies locally what it has itself; two ranks of one device
   * exchange a message, which stays inside it if the transport can do that.
   */
  uint32_t avoid_same_device;
  /**
   * Tensor parallel; 0 reads all sizes of this side from its layout.
   */
  uint32_t source_tp;
  /**
   * Sizes of 0 are 1, here and below.
   */
  uint32_t source_pp;
  /**
   * Expert parallel.
   */
  uint32_t source_ep;
  /**
   * Data parallel.
   */
  uint32_t source_dp;
  /**
   * Context parallel.
   */
  uint32_t source_cp;
  /**
   * Tensor parallel, of one replica; 0 reads all sizes of this side from its layout.
   */
  uint32_t destination_tp;
  /**
   * Pipeline stages of one replica.
   */
  uint32_t destination_pp;
  /**
   * Expert parallel, of one replica.
   */
  uint32_t destination_ep;
  /**
   * Replicas of destination_tp * destination_pp * destination_ep ranks.
   */
  uint32_t replica_count;
  /**
   * One list per source copy, each [PP][TP]; none means Megatron's order,
   * or that of the layout.
   */
  const struct wsync_rank_list *source_ranks;
  /**
   * How many lists there are.
   */
  size_t source_list_count;
  /**
   * One list per replica, each [PP][EP][TP]; none means ascending ranks, or
   * the order of the layout.
   */
  const struct wsync_rank_list *destination_ranks;
  /**
   * How many lists there are.
   */
  size_t destination_list_count;
} wsync_two_stage_options;

/**
 * What a plan is made with. All of it enters the fingerprint, so it has to be
 * equal on all ranks, the variables behind defaults included.
 *
 * Since: 0.1
 */
typedef struct wsync_plan_options {
  /**
   * sizeof(wsync_plan_options).
   */
  size_t struct_size;
  /**
   * A wsync_strategy.
   */
  uint32_t strategy;
  /**
   * A wsync_source_rule.
   */
  uint32_t source_rule;
  /**
   * Bytes of staging memory per rank, at most; 0 is WSYNC_STAGING_BYTES_MAX
   * from the environment, or 512 MiB.
   */
  uint64_t staging_bytes_max;
  /**
   * Contiguous runs of at least that many bytes travel without staging; 0
   * is WSYNC_DIRECT_BYTES_MIN from the environment, or 256 KiB.
   */
  uint64_t direct_bytes_min;
  /**
   * Parts that every pair's bytes are cut into; 0 is the smallest number
   * that keeps staging inside its budget.
   */
  uint32_t bucket_count;
  /**
   * WSYNC_STRATEGY_FANOUT: copies that leave the source; 0 is as many as
   * can leave while the fullest NVLink domain receives.
   */
  uint32_t copy_count;
  /**
   * Globs (*, ?) of source tensors that the destination may leave unused;
   * without them an unused tensor is an error.
   */
  const struct wsync_text *unused_allowed;
  /**
   * How many there are.
   */
  size_t unused_allowed_count;
  /**
   * WSYNC_STRATEGY_TWO_STAGE: how ranks are mapped; NULL reads it from the
   * layouts.
   */
  const struct wsync_two_stage_options *two_stage;
  /**
   * What stands between the ranks; NULL is the default topology.
   */
  const struct wsync_topology *topology;
  /**
   * A wsync_order.
   */
  uint32_t order;
  /**
   * A wsync_spread, for WSYNC_STRATEGY_FANOUT.
   */
  uint32_t spread;
  /**
   * WSYNC_STRATEGY_RELAY and _FANOUT: not 0 lets bytes leave a source
   * domain through the NICs of all its source ranks, whichever of them
   * holds the bytes. Costs relay memory, which counts as staging.
   */
  uint32_t source_relay;
  /**
   * 0.
   */
  uint32_t reserved;
} wsync_plan_options;

/**
 * A range [first, end) of numbers.
 *
 * Since: 0.1
 */
typedef struct wsync_number_range {
  /**
   * The first of them.
   */
  uint32_t first;
  /**
   * One more than the last.
   */
  uint32_t end;
} wsync_number_range;

/**
 * Which tensors a plan moves, and to which copies. What is left zero selects
 * all; what is given must all hold.
 *
 * Since: 0.1
 */
typedef struct wsync_selector {
  /**
   * sizeof(wsync_selector).
   */
  size_t struct_size;
  /**
   * Any match selects; none selects all.
   */
  const struct wsync_text *include;
  /**
   * How many there are.
   */
  size_t include_count;
  /**
   * Any match takes the name out again.
   */
  const struct wsync_text *exclude;
  /**
   * How many there are.
   */
  size_t exclude_count;
  /**
   * Layers: the first component of a name that is a number.
   */
  const struct wsync_number_range *layers;
  /**
   * How many there are.
   */
  size_t layers_count;
  /**
   * Experts: of names with a component "experts", the number after it or
   * else the indices of the first axis.
   */
  const struct wsync_number_range *experts;
  /**
   * How many there are.
   */
  size_t experts_count;
  /**
   * Destination copies; the plan numbers them anew.
   */
  const uint32_t *copies;
  /**
   * How many there are.
   */
  size_t copies_count;
  /**
   * WSYNC_SELECT_*: what is trained, by the "frozen" marks of both layouts.
   */
  uint32_t trainable;
  /**
   * WSYNC_SELECT_*: the draft model, by the "draft" marks of both layouts.
   */
  uint32_t draft;
} wsync_selector;

/**
 * Identifies a plan: 128 bits over its inputs, its decision and the version
 * of the planner. Printed as 32 hexadecimal digits in this byte order.
 *
 * Since: 0.1
 */
typedef struct wsync_fingerprint {
  /**
   * To be compared and printed as they are.
   */
  uint8_t bytes[16];
} wsync_fingerprint;

/**
 * What one rank does in one execution of a plan.
 *
 * Since: 0.1
 */
typedef struct wsync_program_info {
  /**
   * sizeof(wsync_program_info), set by the caller.
   */
  size_t struct_size;
  /**
   * Bytes sent over the transport.
   */
  uint64_t bytes_sent;
  /**
   * Bytes received over the transport.
   */
  uint64_t bytes_received;
  /**
   * Bytes copied within the rank.
   */
  uint64_t bytes_local;
  /**
   * Staging memory that a session allocates.
   */
  uint64_t staging_bytes;
  /**
   * Messages, both directions.
   */
  uint64_t message_count;
  /**
   * Messages that need no staging on this rank.
   */
  uint64_t direct_message_count;
  /**
   * Ranks it sends to or receives from.
   */
  uint32_t peer_count;
  /**
   * Buffers it binds.
   */
  uint32_t buffer_count;
} wsync_program_info;

/**
 * What a simulation does to a plan; all 0 does nothing to it. Equal seeds
 * choose equal ranks and times.
 *
 * Since: 0.1
 */
typedef struct wsync_simulate_options {
  /**
   * sizeof(wsync_simulate_options).
   */
  size_t struct_size;
  /**
   * Chooses stragglers and failures; the same seed chooses the same.
   */
  uint64_t seed;
  /**
   * Ranks whose links are slow.
   */
  uint32_t straggler_count;
  /**
   * Of their full speed, 1 to 100; 0 is 50.
   */
  uint32_t straggler_percent;
  /**
   * Ranks that stop for good at some time before the healthy end.
   */
  uint32_t failure_count;
  /**
   * 0.
   */
  uint32_t reserved;
} wsync_simulate_options;

/**
 * Has the owner of a borrowed communicator abort it: ncclCommAbort, by
 * whatever thread may do that. Called at most once, from a thread of the
 * library, when a transfer has failed and this NCCL has no ncclCommRevoke. It
 * must not call the library, must not unwind and must not longjmp.
 *
 * Since: 0.1
 */
typedef void (*wsync_nccl_abort_fn)(void *user,
                                    const char *reason);

/**
 * How a transport uses NCCL. NCCL is searched for in this order: `library`,
 * WSYNC_NCCL_LIBRARY, VLLM_NCCL_SO_PATH, the copy in the process, symbols that
 * are linked into the program, libnccl.so.2. With a borrowed communicator only
 * copies in the process count. A process that is going to load PyTorch does
 * so before, or PyTorch gets the copy that was loaded here.
 *
 * The GPU is the one that `comm` is on, else the current device of the thread
 * that creates the transport. All ranks have the same NCCL version.
 *
 * NCCL lets one thread at a time launch on a device. Callers with other
 * communicators on this device keep to it while wsync_transport_meet,
 * wsync_transport_rendezvous, wsync_request_start and wsync_request_submit run
 * and while the transport is aborted or destroyed; the library's own calls on
 * one device wait for each other. And whatever is launched on several
 * communicators of a device is launched in the same order on all ranks.
 *
 * Since: 0.1
 */
typedef struct wsync_nccl_options {
  /**
   * sizeof(wsync_nccl_options).
   */
  size_t struct_size;
  /**
   * A wsync_nccl_mode; 0 is SPLIT with `comm`, OWN without.
   */
  uint32_t mode;
  /**
   * Thread blocks, and so multiprocessors, that its kernels take; 0 is
   * NCCL's own choice. A minimum needs a maximum.
   */
  uint32_t cta_count_min;
  /**
   * See `cta_count_min`.
   */
  uint32_t cta_count_max;
  /**
   * Peers that are connected at once (since NCCL 2.30); 0 is NCCL's choice.
   */
  uint32_t p2p_peer_count_max;
  /**
   * Channels to a peer on another host (since NCCL 2.28); 0 is NCCL's
   * choice.
   */
  uint32_t net_channel_count;
  /**
   * 1: after a failure keep what a transport of the survivors can be made
   * of by ncclCommShrink, without meeting through a unique id.
   */
  uint32_t is_rebuildable;
  /**
   * SPLIT and DIRECT: an ncclComm_t.
   */
  void *comm;
  /**
   * OWN: WSYNC_NCCL_ID_BYTES bytes of wsync_transport_nccl_id, the same on
   * all ranks. NULL: the lowest rank makes an id, which travels with its
   * greeting.
   */
  const void *id;
  /**
   * Full path of libnccl.so.2; NULL searches.
   */
  const char *library;
  /**
   * OWN: the transport of this rank that has failed, if the ranks are the
   * survivors of it. Shrinks its communicator if every rank has kept its
   * part, else makes one from a unique id. NULL: none.
   */
  const struct wsync_transport *rebuild_from;
  /**
   * DIRECT: see wsync_nccl_abort_fn. NULL: kernels that wait for a lost
   * peer go on until the owner aborts the communicator.
   */
  wsync_nccl_abort_fn on_abort;
  /**
   * Handed to `on_abort` as it is.
   */
  void *on_abort_user;
  /**
   * A wsync_nccl_ipc, the same on all ranks. 0: as DEVICE, but ranks of a
   * GPU that NCCL takes are left to it. A rank has 16 MiB of GPU memory for
   * each rank that it hands bytes to so.
   */
  uint32_t ipc;
  /**
   * 1: ranks that are reached by IPC read contiguous bytes where they lie in
   * this rank's buffers, one copy instead of two, if CUDA can export those:
   * what cudaMalloc gave, not what the virtual memory calls gave. Such a
   * buffer stays allocated, whatever becomes of a request, until a later one
   * of the same plan, with other buffers in its place, has ended, or the
   * ranks that it went to have destroyed their transports: CUDA does not
   * allow memory to be freed that another process has open.
   */
  uint32_t is_lending;
} wsync_nccl_options;

/**
 * What a transport is made with. The kind and the ranks are to be equal on
 * all ranks.
 *
 * Since: 0.1
 */
typedef struct wsync_transport_options {
  /**
   * sizeof(wsync_transport_options).
   */
  size_t struct_size;
  /**
   * A wsync_transport_kind.
   */
  uint32_t kind;
  /**
   * This rank.
   */
  uint32_t rank;
  /**
   * All ranks, in any order; NULL means 0, 1, .. rank_count - 1.
   */
  const uint32_t *ranks;
  /**
   * How many ranks there are.
   */
  uint32_t rank_count;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * shm: bytes of shared memory for all that this rank sends, at most; 0
   * is WSYNC_SHM_RING_BYTES_MAX from the environment, or 128 MiB.
   */
  uint64_t ring_bytes_max;
  /**
   * nccl: how; NULL means all defaults.
   */
  const struct wsync_nccl_options *nccl;
} wsync_transport_options;

/**
 * What a session is made with.
 *
 * Since: 0.1
 */
typedef struct wsync_session_options {
  /**
   * sizeof(wsync_session_options).
   */
  size_t struct_size;
  /**
   * Nanoseconds that wsync_session_load waits for peers to be reachable; 0
   * is 30 seconds.
   */
  uint64_t load_deadline_ns;
} wsync_session_options;

/**
 * A buffer and its memory.
 *
 * dtype, shape and strides say how the caller sees the memory. A plan that
 * sees it otherwise is then refused: one whose views have another element
 * type, or elements that are none of the array's, or, unless the array is
 * row-major, axes in another order. Unsigned integers stand for the bits of
 * elements as wide as they are, and bytes for any. What is left 0 is not told,
 * and not compared.
 *
 * Since: 0.1
 */
typedef struct wsync_binding {
  /**
   * The buffer's name in the layout of its side.
   */
  struct wsync_text name;
  /**
   * Where it begins: the lowest byte, also of an array that runs backwards.
   * Stays the caller's, and valid until it is unbound.
   */
  void *ptr;
  /**
   * Its size, which is at least that of the plan's buffer.
   */
  uint64_t bytes;
  /**
   * A wsync_side.
   */
  uint32_t side;
  /**
   * A wsync_memory.
   */
  uint32_t memory;
  /**
   * The GPU, if memory is WSYNC_MEMORY_DEVICE.
   */
  uint32_t device;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * The type of the elements; {0, 0, 0} if that is not told.
   */
  struct wsync_dtype dtype;
  /**
   * Axes of the array, at most WSYNC_DIM_COUNT_MAX; 0 if they are not told.
   */
  uint32_t dim_count;
  /**
   * Elements along each axis; 0 beyond dim_count.
   */
  uint64_t shape[8];
  /**
   * Bytes between neighbours along each axis, which may be negative; all 0
   * means without gaps, the last axis innermost.
   */
  int64_t strides[8];
} wsync_binding;

/**
 * What one execution is asked for. Version and flags are to be equal on all
 * ranks; of differing deadlines the shortest holds.
 *
 * Since: 0.1
 */
typedef struct wsync_request_options {
  /**
   * sizeof(wsync_request_options).
   */
  size_t struct_size;
  /**
   * The caller's number of these weights.
   */
  uint64_t version;
  /**
   * Nanoseconds that the ranks have to agree; 0 is WSYNC_AGREE_DEADLINE_MS
   * from the environment, or 60 seconds.
   */
  uint64_t agree_deadline_ns;
  /**
   * Nanoseconds that a running request may go without finishing a step; 0
   * is WSYNC_STALL_DEADLINE_MS from the environment, or 30 seconds.
   */
  uint64_t stall_deadline_ns;
  /**
   * Any of wsync_request_flag.
   */
  uint32_t flags;
  /**
   * 0.
   */
  uint32_t reserved;
} wsync_request_options;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Version of the loaded library, packed like WSYNC_VERSION.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
uint32_t wsync_version(void);

/**
 * Version of the loaded library as text, such as "0.1.0". Static.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
const char *wsync_version_string(void);

/**
 * Number of the binary interface of the loaded library. It is to equal
 * WSYNC_ABI_VERSION; wsync_header_matches says whether it does.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
uint32_t wsync_abi_version(void);

/**
 * The file that the library was loaded from, or the program it is linked into;
 * empty where that is not known. Static, never NULL.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
const char *wsync_library_file(void);

/**
 * Checks that a caller compiled with WSYNC_VERSION and WSYNC_ABI_VERSION can
 * use the loaded library: one binary interface, and nothing declared that it
 * lacks. The message says which file was loaded and what to do.
 * wsync_header_matches is the same check without a message.
 *
 * Errors: VERSION_MISMATCH.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_header_check(uint32_t header_version,
                                uint32_t header_abi_version,
                                struct wsync_error *err);

/**
 * Name of a status, as this header spells it less WSYNC_ and ERR_, such as
 * "BUFFER_TOO_SMALL"; "UNKNOWN" for any other number. Static, never NULL.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
const char *wsync_status_name(int32_t status);

/**
 * 1 if the same request may be prepared again on the same transport, for the
 * failure damaged nothing else; 0 otherwise. Takes any number.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
int32_t wsync_status_is_retryable(int32_t status);

/**
 * 1 if the transport is lost and has to be made anew; 0 otherwise. Takes any
 * number.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
int32_t wsync_status_is_transport_lost(int32_t status);

/**
 * Sends log lines up to `max_level`, a wsync_log_level, to `function`, which
 * is called with `user`. A NULL function restores the default: standard error
 * if the environment variable WSYNC_LOG is set, nowhere otherwise. Where
 * WSYNC_LOG is set, its level holds instead of `max_level`.
 *
 * When this returns, the function that was set before is not running and will
 * never be called again, so that its `user` may go.
 *
 * Errors: UNSUPPORTED for an unknown level; BUSY if called by a log function.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_set_log(wsync_log_fn function,
                           void *user,
                           uint32_t max_level,
                           struct wsync_error *err);

/**
 * Number of environment variables that the library knows.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
size_t wsync_env_count(void);

/**
 * Name, default, effective value and meaning of variable `index`, which is
 * less than wsync_env_count(). The environment is read once, at the first
 * call that needs it.
 *
 * Errors: NOT_FOUND for an index that is too large.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_env_at(size_t index,
                          struct wsync_env_info *out_info,
                          struct wsync_error *err);

/**
 * Makes a layout from the text of a layout file (JSON, UTF-8).
 *
 * Errors: LAYOUT_INVALID names line, tensor and numbers, VERSION_MISMATCH a
 * file of another version; LIMIT_EXCEEDED.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_layout_create_from_json(const char *json,
                                           size_t json_bytes,
                                           struct wsync_layout **out_layout,
                                           struct wsync_error *err);

/**
 * Makes a layout from a Hugging Face `config.json` and parallel sizes, on
 * ranks from `first_rank` on.
 *
 * `framework` is "megatron", "vllm", "sglang", "hf" or "dtensor". `sizes` is
 * text such as "tp=4,pp=8,ep=16,dp=4"; groups of engines that differ are
 * separated by ';'. "frozen=model.embed_tokens.*:lm_head.*" marks what is not
 * trained, by names and globs. For "dtensor" it is the text of a DTensor file,
 * which has its own rank numbers. What was assumed is logged at INFO, what may
 * surprise at WARN; wsync_layout_describe has both.
 *
 * Errors: LAYOUT_INVALID names the field or the size, the numbers and what is
 * accepted; INVALID_ARGUMENT for an unknown framework; LIMIT_EXCEEDED.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_layout_from_model(const char *config_json,
                                     size_t config_json_bytes,
                                     const char *framework,
                                     const char *sizes,
                                     size_t sizes_bytes,
                                     uint32_t first_rank,
                                     struct wsync_layout **out_layout,
                                     struct wsync_error *err);

/**
 * Makes a layout of one rank from flat arrays of tensors, buffers and views.
 * Layouts of several ranks become one by wsync_layout_merge.
 *
 * Errors: LAYOUT_INVALID, INVALID_ARGUMENT or LIMIT_EXCEEDED name the tensor
 * or buffer and the numbers.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_layout_create_from_views(const struct wsync_rank_views *views,
                                            struct wsync_layout **out_layout,
                                            struct wsync_error *err);

/**
 * Makes a layout from what wsync_layout_serialize wrote, on any machine.
 *
 * Errors: CORRUPT for damaged, truncated or foreign bytes; VERSION_MISMATCH.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_layout_create_from_bytes(const void *bytes,
                                            size_t byte_count,
                                            struct wsync_layout **out_layout,
                                            struct wsync_error *err);

/**
 * Makes one layout of several, such as the layouts of all ranks of a side.
 * No rank may be in two of them; tensors of one name must be equal.
 *
 * Errors: LAYOUT_INVALID names the rank or tensor; LIMIT_EXCEEDED.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_layout_merge(const struct wsync_layout *const *layouts,
                                size_t layout_count,
                                struct wsync_layout **out_layout,
                                struct wsync_error *err);

/**
 * Writes the layout as bytes that wsync_layout_create_from_bytes reads. With
 * a `capacity` of 0 only `out_needed` is written: the number of bytes.
 *
 * Errors: BUFFER_TOO_SMALL.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_layout_serialize(const struct wsync_layout *layout,
                                    void *buffer,
                                    size_t capacity,
                                    size_t *out_needed,
                                    struct wsync_error *err);

/**
 * Writes the layout as a layout file, NUL-terminated. With a `capacity` of 0
 * only `out_needed` is written: the number of bytes, the NUL included.
 *
 * Errors: BUFFER_TOO_SMALL.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_layout_to_json(const struct wsync_layout *layout,
                                  char *buffer,
                                  size_t capacity,
                                  size_t *out_needed,
                                  struct wsync_error *err);

/**
 * Looks for everything that is wrong with a layout or, if `destination` is
 * not NULL, with planning from one to the other: bytes that are needed and
 * never held, bytes written twice, overlaps, cuts that split a granule, names
 * that one side lacks. Finding something is not a failure of the call.
 *
 * Writes all findings as JSON, NUL-terminated, and the number of those that
 * hinder: 0 means that a plan can be made. With a `capacity` of 0 only
 * `out_needed` (bytes, the NUL included) and `out_error_count` are written.
 *
 * The JSON is one object; what does not apply in it is null:
 *
 *   { "errors": 47,                 all that hinder
 *     "source": S,                  each layout alone
 *     "destination": S,             null if `destination` is NULL
 *     "pair": P,                    both together, as far as each is well-formed
 *     "unpaired": ["w", ..] }       tensors that P leaves out for errors of theirs
 *   S = { "findings": [F, ..], "omitted": 0, "errors": 0 }
 *   F = { "kind": "never_held",     of a small set of words
 *         "side": "source",         the layout it is about
 *         "tensor": "w",            empty if it is about none
 *         "axis": 0, "rank": 3,     the axis, and the lowest rank it shows on
 *         "bytes": 4096,            how many are concerned; 0 if not the point
 *         "message": ".." }         a sentence for people
 *   P = S with { "source": C, "destination": C,
 *                "source_only": ["w", ..], "destination_only": [..] }
 *   C = { "tensors": 46, "bytes": 23497216, "matched_bytes": 23497216 }
 *
 * At most 100 findings of a kind are listed; "omitted" counts the others.
 *
 * Errors: BUFFER_TOO_SMALL.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_layout_check(const struct wsync_layout *source,
                                const struct wsync_layout *destination,
                                char *buffer,
                                size_t capacity,
                                size_t *out_needed,
                                size_t *out_error_count,
                                struct wsync_error *err);

/**
 * Like wsync_layout_check, from the texts of layout files, of which a layout
 * cannot be made if they are ill-formed. `destination_json` may be NULL.
 *
 * Errors: BUFFER_TOO_SMALL; LAYOUT_INVALID only where a text is not JSON of
 * the right shape, VERSION_MISMATCH where it is of another version.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_layout_check_json(const char *source_json,
                                     size_t source_json_bytes,
                                     const char *destination_json,
                                     size_t destination_json_bytes,
                                     char *buffer,
                                     size_t capacity,
                                     size_t *out_needed,
                                     size_t *out_error_count,
                                     struct wsync_error *err);

/**
 * Writes a summary of the layout as JSON, NUL-terminated: ranks, copies,
 * tensors, bytes. With a `capacity` of 0 only `out_needed` is written: the
 * number of bytes, the NUL included.
 *
 * A layout of wsync_layout_from_model has in "remarks" what was assumed, as
 * sentences, and in "hazards" what may surprise, each
 *
 *   { "kind": "experts",            heads, rows, vocabulary, experts or
 *                                   quantization_block
 *     "is_error": false,
 *     "parameter": "..",            "{layer}" where every layer has it
 *     "message": ".." }             the numbers, and what to change
 *
 * Both are empty for other layouts.
 *
 * Errors: BUFFER_TOO_SMALL.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_layout_describe(const struct wsync_layout *layout,
                                   char *buffer,
                                   size_t capacity,
                                   size_t *out_needed,
                                   struct wsync_error *err);

/**
 * Number of ranks of the layout; 0 if `layout` is NULL or not a layout.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
uint32_t wsync_layout_rank_count(const struct wsync_layout *layout);

/**
 * Number of canonical tensors; 0 if `layout` is NULL or not a layout.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
uint32_t wsync_layout_tensor_count(const struct wsync_layout *layout);

/**
 * Number of copies (replicas); 0 if `layout` is NULL or not a layout.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
uint32_t wsync_layout_copy_count(const struct wsync_layout *layout);

/**
 * Number of buffers that `rank` binds for all of the layout; 0 if the rank
 * takes no part, or if `layout` is NULL or not a layout.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
size_t wsync_layout_buffer_count(const struct wsync_layout *layout,
                                 uint32_t rank);

/**
 * Name, size and memory of buffer `index` of `rank`, in order of name.
 *
 * Errors: NOT_FOUND if the rank has no such buffer.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_layout_buffer_at(const struct wsync_layout *layout,
                                    uint32_t rank,
                                    size_t index,
                                    struct wsync_buffer_info *out_info,
                                    struct wsync_error *err);

/**
 * Ends the layout. Plans made from it go on. NULL is fine.
 *
 * Thread safety: once, with no other call on it under way. Since: 0.1
 */
void wsync_layout_destroy(struct wsync_layout *layout);

/**
 * Makes a topology from arrays. `options` may be NULL: the default topology.
 *
 * Errors: INVALID_ARGUMENT for what contradicts itself, speeds of 0 and cuts
 * that disconnect, with the numbers; LIMIT_EXCEEDED.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_topology_create(const struct wsync_topology_options *options,
                                   struct wsync_topology **out_topology,
                                   struct wsync_error *err);

/**
 * Makes a topology from the text of a topology file (JSON, UTF-8).
 *
 * Errors: INVALID_ARGUMENT names line, field and numbers, VERSION_MISMATCH a
 * file of another version; LIMIT_EXCEEDED.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_topology_create_from_json(const char *json,
                                             size_t json_bytes,
                                             struct wsync_topology **out_topology,
                                             struct wsync_error *err);

/**
 * Writes where a rank is as bytes, to be gathered from all ranks over any
 * channel and given to wsync_topology_create_from_places. With a `capacity`
 * of 0 only `out_needed` is written: the number of bytes.
 *
 * Errors: INVALID_ARGUMENT if the device is empty and there is no GPU, or the
 * host on a system without a boot id; BUFFER_TOO_SMALL.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_topology_place(const struct wsync_rank_place *place,
                                  void *buffer,
                                  size_t capacity,
                                  size_t *out_needed,
                                  struct wsync_error *err);

/**
 * Makes a topology from the places of all ranks, in any order. `like` says
 * what ranks cannot know: speeds, cuts and latency; its first group of hosts
 * those of all hosts. NULL takes the defaults.
 *
 * Errors: CORRUPT for damaged bytes; INVALID_ARGUMENT for places that
 * contradict each other, with rank and names.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_topology_create_from_places(const struct wsync_bytes *places,
                                               size_t place_count,
                                               const struct wsync_topology_options *like,
                                               struct wsync_topology **out_topology,
                                               struct wsync_error *err);

/**
 * Writes the topology as a topology file, NUL-terminated. With a `capacity`
 * of 0 only `out_needed` is written: the number of bytes, the NUL included.
 *
 * Errors: BUFFER_TOO_SMALL.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_topology_to_json(const struct wsync_topology *topology,
                                    char *buffer,
                                    size_t capacity,
                                    size_t *out_needed,
                                    struct wsync_error *err);

/**
 * Writes where `rank` sits.
 *
 * Errors: NOT_FOUND if the topology does not place it, as one without
 * placement places none.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_topology_site(const struct wsync_topology *topology,
                                 uint32_t rank,
                                 struct wsync_site *out_site,
                                 struct wsync_error *err);

/**
 * Destroys the topology. NULL is ignored. Plans that were made with it stay
 * valid.
 *
 * Thread safety: nobody else uses the handle any more. Since: 0.1
 */
void wsync_topology_destroy(struct wsync_topology *topology);

/**
 * Maps ranks.
 *
 * Errors: UNSUPPORTED for sizes that the kind cannot serve, INFEASIBLE if a
 * source rank shares its device with every candidate (KEEP_SAME_DEVICE lifts
 * that); INVALID_ARGUMENT and LIMIT_EXCEEDED. All name the numbers.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_mapping_create(const struct wsync_mapping_options *options,
                                  struct wsync_mapping **out_mapping,
                                  struct wsync_error *err);

/**
 * Copies `list`, a wsync_mapping_list, to `pairs`, which holds `capacity` of
 * them. With a `capacity` of 0 only `out_count` is written: their number.
 *
 * Errors: BUFFER_TOO_SMALL; UNSUPPORTED for an unknown list.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_mapping_pairs(const struct wsync_mapping *mapping,
                                 uint32_t list,
                                 struct wsync_pair *pairs,
                                 size_t capacity,
                                 size_t *out_count,
                                 struct wsync_error *err);

/**
 * Copies the ranks that `rank` sends to in `list`, a wsync_mapping_list, to
 * `ranks`, which holds `capacity` of them: in the order of the sends, none if
 * `rank` takes no part. With a `capacity` of 0 only `out_count` is written.
 *
 * The first call for a list costs as much as there are pairs in it, each
 * further one as much as it answers.
 *
 * Errors: NOT_FOUND for a rank that the mapping does not have;
 * BUFFER_TOO_SMALL; UNSUPPORTED for an unknown list.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_mapping_sends(const struct wsync_mapping *mapping,
                                 uint32_t list,
                                 uint32_t rank,
                                 uint32_t *ranks,
                                 size_t capacity,
                                 size_t *out_count,
                                 struct wsync_error *err);

/**
 * Copies the ranks that `rank` receives from in `list`, a wsync_mapping_list,
 * to `ranks`; otherwise as wsync_mapping_sends.
 *
 * Errors: NOT_FOUND for a rank that the mapping does not have;
 * BUFFER_TOO_SMALL; UNSUPPORTED for an unknown list.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_mapping_receives(const struct wsync_mapping *mapping,
                                    uint32_t list,
                                    uint32_t rank,
                                    uint32_t *ranks,
                                    size_t capacity,
                                    size_t *out_count,
                                    struct wsync_error *err);

/**
 * Copies how many pairs of `list`, a wsync_mapping_list, end at each
 * destination rank to `loads`, which holds `capacity` of them: replica by
 * replica, ranks that receive nothing included. With a `capacity` of 0 only
 * `out_count` is written.
 *
 * Errors: BUFFER_TOO_SMALL; UNSUPPORTED for an unknown list.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_mapping_loads(const struct wsync_mapping *mapping,
                                 uint32_t list,
                                 struct wsync_rank_load *loads,
                                 size_t capacity,
                                 size_t *out_count,
                                 struct wsync_error *err);

/**
 * Copies the pairs of stage 1 that were moved to avoid a shared device, in
 * order of choice, to `moved`, which holds `capacity` of them. With a
 * `capacity` of 0 only `out_count` is written: their number.
 *
 * Errors: BUFFER_TOO_SMALL.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_mapping_moved(const struct wsync_mapping *mapping,
                                 struct wsync_moved_pair *moved,
                                 size_t capacity,
                                 size_t *out_count,
                                 struct wsync_error *err);

/**
 * Ranks of a weight-mapping group: destination TP / source TP in a mapping of
 * two stages, else 1. 0 if `mapping` is NULL or not a mapping.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
uint32_t wsync_mapping_group_size(const struct wsync_mapping *mapping);

/**
 * How routed experts are regrouped, a wsync_regroup_kind; 0 also if `mapping`
 * is NULL or not a mapping.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
uint32_t wsync_mapping_regroup_kind(const struct wsync_mapping *mapping);

/**
 * Number of groups of source ranks that regroup their routed experts before
 * stage 1; 0 if `mapping` is NULL or not a mapping.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
size_t wsync_mapping_regroup_count(const struct wsync_mapping *mapping);

/**
 * Copies the ranks of regroup group `index` to `ranks`, which holds
 * `capacity` of them. With a `capacity` of 0 only `out_count` is written.
 *
 * Errors: NOT_FOUND for an index that is too large; BUFFER_TOO_SMALL.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_mapping_regroup_at(const struct wsync_mapping *mapping,
                                      size_t index,
                                      uint32_t *ranks,
                                      size_t capacity,
                                      size_t *out_count,
                                      struct wsync_error *err);

/**
 * Writes the whole mapping as JSON, NUL-terminated: all lists of pairs, the
 * same lists as each rank sees them, loads, where ranks sit, and which pairs
 * were moved to avoid a shared device. With a `capacity`
 * of 0 only `out_needed` is written: the number of bytes, the NUL included.
 *
 * Errors: BUFFER_TOO_SMALL.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_mapping_report(const struct wsync_mapping *mapping,
                                  char *buffer,
                                  size_t capacity,
                                  size_t *out_needed,
                                  struct wsync_error *err);

/**
 * Ends the mapping. NULL is fine.
 *
 * Thread safety: once, with no other call on it under way. Since: 0.1
 */
void wsync_mapping_destroy(struct wsync_mapping *mapping);

/**
 * Plans the way from `source` to `destination`. `options` may be NULL.
 *
 * Errors: LAYOUT_INVALID if a byte has no holder, or shapes or types do not
 * fit; STAGING_TOO_SMALL; both name tensor, rank and numbers. UNSUPPORTED for
 * an unknown strategy or rule.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_plan_create(const struct wsync_layout *source,
                               const struct wsync_layout *destination,
                               const struct wsync_plan_options *options,
                               struct wsync_plan **out_plan,
                               struct wsync_error *err);

/**
 * Makes a plan from what wsync_plan_serialize wrote, on any machine.
 *
 * Errors: CORRUPT for damaged, truncated or foreign bytes; VERSION_MISMATCH
 * for a plan of another version.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_plan_create_from_bytes(const void *bytes,
                                          size_t byte_count,
                                          struct wsync_plan **out_plan,
                                          struct wsync_error *err);

/**
 * Makes `plan` anew for sides or a topology that changed a little: a replica
 * joins or leaves, ranks are drained, experts move. The decision stays, so
 * this takes milliseconds; only how many copies leave each source group is
 * counted anew, and there are more buckets if a rank would exceed the staging
 * budget. `source`, `destination` and `topology` may be NULL: those of `plan`.
 *
 * Errors: as wsync_plan_create, but that source tensors may be unused;
 * INVALID_ARGUMENT if the topology leaves ranks out.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_plan_replan(const struct wsync_plan *plan,
                               const struct wsync_layout *source,
                               const struct wsync_layout *destination,
                               const struct wsync_topology *topology,
                               struct wsync_plan **out_plan,
                               struct wsync_error *err);

/**
 * Makes the plan that moves only the selected tensors of `plan`, with a
 * fingerprint of its own. Selecting again narrows further.
 *
 * Errors: NOT_FOUND if nothing is selected; STAGING_TOO_SMALL.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_plan_select(const struct wsync_plan *plan,
                               const struct wsync_selector *selector,
                               struct wsync_plan **out_plan,
                               struct wsync_error *err);

/**
 * Writes the plan as bytes that wsync_plan_create_from_bytes reads. With a
 * `capacity` of 0 only `out_needed` is written: the number of bytes.
 *
 * Errors: BUFFER_TOO_SMALL.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_plan_serialize(const struct wsync_plan *plan,
                                  void *buffer,
                                  size_t capacity,
                                  size_t *out_needed,
                                  struct wsync_error *err);

/**
 * Writes the fingerprint of the plan. Ranks only move bytes together if
 * theirs are equal.
 *
 * Errors: none but a wrong argument.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_plan_fingerprint(const struct wsync_plan *plan,
                                    struct wsync_fingerprint *out_fingerprint,
                                    struct wsync_error *err);

/**
 * Derives the programs of all ranks and checks, by other means than they were
 * made with, that every destination byte is written exactly once and that
 * every message has two ends. Linear in the whole plan; every rank's own
 * program is checked anyway when it is derived.
 *
 * Errors: INTERNAL names tensor, rank and numbers.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_plan_verify(const struct wsync_plan *plan,
                               struct wsync_error *err);

/**
 * Number of ranks of both layouts together; 0 if `plan` is NULL or not a
 * plan.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
uint32_t wsync_plan_rank_count(const struct wsync_plan *plan);

/**
 * Copies the ranks that take part, ascending, to `ranks`, which holds
 * `capacity` of them. With a `capacity` of 0 only `out_count` is written:
 * their number.
 *
 * Errors: BUFFER_TOO_SMALL.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_plan_ranks(const struct wsync_plan *plan,
                              uint32_t *ranks,
                              size_t capacity,
                              size_t *out_count,
                              struct wsync_error *err);

/**
 * Number of canonical tensors that move; 0 if `plan` is NULL or not a plan.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
uint32_t wsync_plan_tensor_count(const struct wsync_plan *plan);

/**
 * Number of steps of every rank's program; 0 if `plan` is NULL or not a plan.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
uint32_t wsync_plan_step_count(const struct wsync_plan *plan);

/**
 * Writes what `rank` does; all zero if it takes no part.
 *
 * Errors: NOT_FOUND if the rank is in neither layout of this plan.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_plan_program_info(const struct wsync_plan *plan,
                                     uint32_t rank,
                                     struct wsync_program_info *out_info,
                                     struct wsync_error *err);

/**
 * Writes what each of `rank_count` ranks does, in the order of `ranks`: what
 * wsync_plan_program_info writes of each, in less time. Up to 16 threads share
 * the work and end before the call returns. A rank may come twice. `out_infos`
 * holds as many structs, `info_stride` bytes (sizeof(wsync_program_info)) from
 * one to the next; their struct_size is written too. Without ranks both may be
 * NULL.
 *
 * Errors: NOT_FOUND if one of the ranks is in neither layout of this plan;
 * LIMIT_EXCEEDED.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_plan_program_infos(const struct wsync_plan *plan,
                                      const uint32_t *ranks,
                                      size_t rank_count,
                                      struct wsync_program_info *out_infos,
                                      size_t info_stride,
                                      struct wsync_error *err);

/**
 * Number of buffers that `rank` binds for this plan, both sides; 0 if it
 * takes no part, or if `plan` is NULL or not a plan.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
size_t wsync_plan_buffer_count(const struct wsync_plan *plan,
                               uint32_t rank);

/**
 * Side, name, size and memory of buffer `index` of `rank`: the source side
 * first, then in order of name.
 *
 * Errors: NOT_FOUND if the rank has no such buffer.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_plan_buffer_at(const struct wsync_plan *plan,
                                  uint32_t rank,
                                  size_t index,
                                  struct wsync_buffer_info *out_info,
                                  struct wsync_error *err);

/**
 * Writes the last step in which `rank` gets bytes of the tensor called
 * `tensor`, or WSYNC_STEP_NONE if it gets none. Once
 * wsync_request_steps_done exceeds that step, the tensor is in place.
 *
 * Errors: NOT_FOUND if the plan does not move such a tensor, or the rank is in
 * neither layout.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_plan_tensor_last_step(const struct wsync_plan *plan,
                                         uint32_t rank,
                                         const char *tensor,
                                         uint32_t *out_step,
                                         struct wsync_error *err);

/**
 * Writes the operations of `rank`, one by one, as a JSON array,
 * NUL-terminated. With a `capacity` of 0 only `out_needed` is written: the
 * number of bytes, the NUL included.
 *
 * Errors: NOT_FOUND if the rank is in neither layout; BUFFER_TOO_SMALL.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_plan_rank_ops(const struct wsync_plan *plan,
                                 uint32_t rank,
                                 char *buffer,
                                 size_t capacity,
                                 size_t *out_needed,
                                 struct wsync_error *err);

/**
 * Writes where an element of `tensor` on destination rank `rank` comes from
 * as JSON, NUL-terminated: its hops in order, each with step, stage, bucket
 * and, at both ends, rank, buffer and byte offset; and the links that it
 * crosses on the topology that the plan was made for. `index` has one number
 * per axis of the tensor. With a `capacity` of 0 only `out_needed` is written: the
 * number of bytes, the NUL included.
 *
 * Errors: NOT_FOUND if the plan does not move the tensor or the rank does not
 * receive the element; INVALID_ARGUMENT if it is outside the tensor;
 * BUFFER_TOO_SMALL.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_plan_origin(const struct wsync_plan *plan,
                               uint32_t rank,
                               const char *tensor,
                               const uint64_t *index,
                               size_t index_count,
                               char *buffer,
                               size_t capacity,
                               size_t *out_needed,
                               struct wsync_error *err);

/**
 * Writes how near the plan is to what is possible as JSON, NUL-terminated:
 * lower_bound_s, predicted_s, ratio, bottleneck, links_busiest and more.
 * `topology` may be NULL: the one that the plan was made for. Derives and
 * simulates all ranks; of very many only some, and of very many messages in
 * fewer buckets, in proportion, and then is_exact is false.
 * With a `capacity` of 0 only `out_needed` is written: the number of bytes,
 * the NUL included.
 *
 * Errors: INVALID_ARGUMENT if the topology leaves ranks out; LIMIT_EXCEEDED
 * for too many ranks; BUFFER_TOO_SMALL.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_plan_certificate(const struct wsync_plan *plan,
                                    const struct wsync_topology *topology,
                                    char *buffer,
                                    size_t capacity,
                                    size_t *out_needed,
                                    struct wsync_error *err);

/**
 * Runs the plan in virtual time with some ranks slow and some dying, and
 * writes what came of it as JSON, NUL-terminated: healthy_ns, total_ns, the
 * ranks that were chosen, copies_complete, and who waits for whom. `topology`
 * and `options` may be NULL. With a `capacity` of 0 only `out_needed` is
 * written: the number of bytes, the NUL included.
 *
 * Errors: INVALID_ARGUMENT for more stragglers and failures than ranks;
 * LIMIT_EXCEEDED for too many ranks; BUFFER_TOO_SMALL.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_plan_simulate(const struct wsync_plan *plan,
                                 const struct wsync_topology *topology,
                                 const struct wsync_simulate_options *options,
                                 char *buffer,
                                 size_t capacity,
                                 size_t *out_needed,
                                 struct wsync_error *err);

/**
 * Writes totals over all ranks as JSON, NUL-terminated: bytes, pairs,
 * messages, staging, the busiest ranks. With a `capacity` of 0 only
 * `out_needed` is written: the number of bytes, the NUL included.
 *
 * Errors: BUFFER_TOO_SMALL.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_plan_report(const struct wsync_plan *plan,
                               char *buffer,
                               size_t capacity,
                               size_t *out_needed,
                               struct wsync_error *err);

/**
 * Writes what differs between two plans as JSON, NUL-terminated: inputs,
 * decision, tensors, ranks. With a `capacity` of 0 only `out_needed` is
 * written: the number of bytes, the NUL included.
 *
 * Errors: BUFFER_TOO_SMALL.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_plan_diff(const struct wsync_plan *plan,
                             const struct wsync_plan *other,
                             char *buffer,
                             size_t capacity,
                             size_t *out_needed,
                             struct wsync_error *err);

/**
 * Ends the plan. Sessions that have loaded it go on. NULL is fine.
 *
 * Thread safety: once, with no other call on it under way. Since: 0.1
 */
void wsync_plan_destroy(struct wsync_plan *plan);

/**
 * Makes a unique id for a communicator: WSYNC_NCCL_ID_BYTES bytes. One rank
 * makes it and gives it to all. NCCL opens a socket on which they find each
 * other; it lives as long as this process. `library` as in
 * wsync_nccl_options.
 *
 * Errors: LIBRARY_NOT_FOUND, LIBRARY_TOO_OLD; BUFFER_TOO_SMALL; SYSTEM with
 * NCCL's result as native code.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_transport_nccl_id(const char *library,
                                     void *buffer,
                                     size_t capacity,
                                     size_t *out_needed,
                                     struct wsync_error *err);

/**
 * Writes the version of NCCL that a transport would use, as ncclGetVersion
 * counts: 23007 is 2.30.7. Loads it if it is not in the process. `library` as
 * in wsync_nccl_options.
 *
 * Errors: LIBRARY_NOT_FOUND, LIBRARY_TOO_OLD.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_transport_nccl_version(const char *library,
                                          uint32_t *out_version,
                                          struct wsync_error *err);

/**
 * Makes a transport that has met nobody yet. Next is wsync_transport_greeting
 * and wsync_transport_meet, or wsync_transport_rendezvous.
 *
 * Errors: UNSUPPORTED for an unknown kind; INVALID_ARGUMENT if `rank` is none
 * of the ranks; IO, OUT_OF_MEMORY; for nccl also LIBRARY_NOT_FOUND,
 * LIBRARY_TOO_OLD, and SYSTEM with NCCL's or CUDA's result.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_transport_create(const struct wsync_transport_options *options,
                                    struct wsync_transport **out_transport,
                                    struct wsync_error *err);

/**
 * Writes this rank's greeting, at most WSYNC_GREETING_BYTES_MAX bytes: what
 * the others need to find it. Gather the greetings of all ranks by any
 * channel, and give all of them to wsync_transport_meet on each. A greeting
 * holds a secret of the group; do not publish it. With a `capacity` of 0 only
 * `out_needed` is written.
 *
 * Errors: BUFFER_TOO_SMALL.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_transport_greeting(const struct wsync_transport *transport,
                                      void *buffer,
                                      size_t capacity,
                                      size_t *out_needed,
                                      struct wsync_error *err);

/**
 * Takes the greetings of all ranks, this one's included, in any order, and
 * connects. Waits for the others at most `deadline_ns` nanoseconds.
 *
 * Errors: MEET_TIMEOUT names a rank that did not come; CORRUPT,
 * VERSION_MISMATCH or INVALID_ARGUMENT the greeting that does not fit;
 * ABORTED.
 * Thread safety: one call at a time per transport; abort may be called
 * meanwhile. Since: 0.1
 */
wsync_status wsync_transport_meet(struct wsync_transport *transport,
                                  const struct wsync_bytes *greetings,
                                  size_t greeting_count,
                                  uint64_t deadline_ns,
                                  struct wsync_error *err);

/**
 * Finds the others through a TCP meeting point, instead of
 * wsync_transport_greeting and wsync_transport_meet. `address` is "host:port";
 * the lowest rank listens there, the others connect. `token` is a secret that
 * all ranks share; whoever does not know it is turned away. Waits at most
 * `deadline_ns` nanoseconds.
 *
 * Errors: MEET_TIMEOUT names a rank that did not come; IO, INVALID_ARGUMENT,
 * ABORTED.
 * Thread safety: one call at a time per transport; abort may be called
 * meanwhile. Since: 0.1
 */
wsync_status wsync_transport_rendezvous(struct wsync_transport *transport,
                                        const char *address,
                                        const void *token,
                                        size_t token_bytes,
                                        uint64_t deadline_ns,
                                        struct wsync_error *err);

/**
 * This transport's rank; WSYNC_RANK_NONE if `transport` is NULL or not a
 * transport.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
uint32_t wsync_transport_rank(const struct wsync_transport *transport);

/**
 * Number of ranks; 0 if `transport` is NULL or not a transport.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
uint32_t wsync_transport_rank_count(const struct wsync_transport *transport);

/**
 * OK while the transport is healthy; afterwards the status of the first
 * reason for which it was aborted, here or on any peer, with its record. A
 * lost transport is destroyed and made anew.
 *
 * Errors: those of the range -80..-99, and whatever else ended it.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_transport_status(const struct wsync_transport *transport,
                                    struct wsync_error *err);

/**
 * Stops everything that uses this transport, here and on all peers. The first
 * reason wins; aborting again changes nothing. Never waits. A meeting that is
 * under way fails with the reason at once, and its peers hear of it or see this
 * rank go.
 *
 * Errors: none but a wrong argument.
 * Thread safety: any thread, at any time, during other calls on the transport
 * too. Since: 0.1
 */
wsync_status wsync_transport_abort(struct wsync_transport *transport,
                                   const char *reason,
                                   struct wsync_error *err);

/**
 * The polite end: leaves together with all other ranks. Waits until every
 * rank has called this, at most `deadline_ns` nanoseconds. No request can be
 * prepared any more. After MEET_TIMEOUT it may be called again, to wait on.
 *
 * Errors: MEET_TIMEOUT names a rank that did not come; BUSY while a request
 * is under way; INVALID_STATE if the
 * ranks have not met; the reason, if the transport was aborted.
 * Thread safety: one call at a time per transport; abort may be called
 * meanwhile. Since: 0.1
 */
wsync_status wsync_transport_finalize(struct wsync_transport *transport,
                                      uint64_t deadline_ns,
                                      struct wsync_error *err);

/**
 * Ends the transport; sessions that use it keep it alive until they are gone.
 * Never waits for peers. NULL is fine.
 *
 * Thread safety: once, with no other call on it under way. Since: 0.1
 */
void wsync_transport_destroy(struct wsync_transport *transport);

/**
 * Makes a session of the transport's rank. The ranks must have met. `options`
 * may be NULL.
 *
 * Errors: INVALID_STATE if they have not met; the reason, if the transport
 * was aborted.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_session_create(const struct wsync_transport *transport,
                                  const struct wsync_session_options *options,
                                  struct wsync_session **out_session,
                                  struct wsync_error *err);

/**
 * Names `bytes` bytes at `ptr` as the buffer `name` of `side`, a wsync_side.
 * `memory` is a wsync_memory, and `device` the GPU where it is one. Binding a
 * name again replaces the range. The memory stays valid until the name is
 * bound again or unbound, or the session is gone, and in any case while a
 * request runs. Names that no plan knows are kept for later ones.
 *
 * Errors: BUSY while a request of the session is under way; UNSUPPORTED for
 * an unknown side or memory; INVALID_ARGUMENT, LIMIT_EXCEEDED.
 * Thread safety: one call at a time per session. Since: 0.1
 */
wsync_status wsync_session_bind(struct wsync_session *session,
                                uint32_t side,
                                const char *name,
                                void *ptr,
                                uint64_t bytes,
                                uint32_t memory,
                                uint32_t device,
                                struct wsync_error *err);

/**
 * Binds `binding_count` buffers in one call, all of them or none. `stride` is
 * sizeof(wsync_binding).
 *
 * Errors: those of wsync_session_bind, naming the buffer; INVALID_ARGUMENT for
 * shape and strides that leave the memory.
 * Thread safety: one call at a time per session. Since: 0.1
 */
wsync_status wsync_session_bind_many(struct wsync_session *session,
                                     const struct wsync_binding *bindings,
                                     size_t binding_count,
                                     size_t stride,
                                     struct wsync_error *err);

/**
 * Forgets the buffer `name` of `side`. Plans that need it cannot be executed
 * until it is bound again.
 *
 * Errors: NOT_FOUND if no such name is bound; BUSY while a request of the
 * session is under way.
 * Thread safety: one call at a time per session. Since: 0.1
 */
wsync_status wsync_session_unbind(struct wsync_session *session,
                                  uint32_t side,
                                  const char *name,
                                  struct wsync_error *err);

/**
 * Gets ready to execute `plan`: derives this rank's program, allocates its
 * staging, and connects to its peers. Writes the number of the slot it takes.
 * The buffers that the program needs are bound before; they may be bound to
 * other memory afterwards. Other ranks need not load it at the same time.
 *
 * Errors: BUFFER_MISMATCH names every buffer that is not bound, or one that is
 * too small, in other memory than planned, or an array of another form;
 * INVALID_ARGUMENT if the plan
 * needs a rank that the transport lacks; OUT_OF_MEMORY, LIMIT_EXCEEDED; the
 * reason, if the transport was aborted.
 * Thread safety: one call at a time per session. Since: 0.1
 */
wsync_status wsync_session_load(struct wsync_session *session,
                                const struct wsync_plan *plan,
                                uint32_t *out_slot,
                                struct wsync_error *err);

/**
 * Forgets the plan in `slot` and gives its staging back. Its requests cannot
 * be prepared any more.
 *
 * Errors: NOT_FOUND; BUSY while one of its requests is under way.
 * Thread safety: one call at a time per session. Since: 0.1
 */
wsync_status wsync_session_unload(struct wsync_session *session,
                                  uint32_t slot,
                                  struct wsync_error *err);

/**
 * The polite end: waits at most `deadline_ns` nanoseconds until no request is
 * under way, then closes the session. Does not touch the transport.
 *
 * Errors: BUSY if a request is still under way then, or READY and waiting to
 * be started; the session stays open.
 * Thread safety: one call at a time per session; abort may be called
 * meanwhile. Since: 0.1
 */
wsync_status wsync_session_finalize(struct wsync_session *session,
                                    uint64_t deadline_ns,
                                    struct wsync_error *err);

/**
 * Stops the transport of this session and everything that uses it, here and
 * on all peers, as wsync_transport_abort does.
 *
 * Errors: none but a wrong argument.
 * Thread safety: any thread, at any time, during other calls on the session
 * too. Since: 0.1
 */
wsync_status wsync_session_abort(struct wsync_session *session,
                                 const char *reason,
                                 struct wsync_error *err);

/**
 * Ends the session; aborts the transport if one of its requests is under way.
 * Never waits for peers. NULL is fine.
 *
 * Thread safety: once, with no other call on it under way. Since: 0.1
 */
void wsync_session_destroy(struct wsync_session *session);

/**
 * Makes a request for the plan in `slot` of `session`.
 *
 * Errors: NOT_FOUND for an empty slot; INVALID_STATE if the session is
 * closed.
 * Thread safety: one call at a time per session. Since: 0.1
 */
wsync_status wsync_request_create(struct wsync_session *session,
                                  uint32_t slot,
                                  struct wsync_request **out_request,
                                  struct wsync_error *err);

/**
 * Begins to agree with all ranks of the plan that this version is to move.
 * Never waits; wsync_request_wait_ready and wsync_request_state tell when it
 * is READY. No byte moves before start. `options` may be NULL.
 *
 * Errors: BUFFER_MISMATCH names what is not bound, or differs from the plan;
 * BUSY while another request of the transport is under way; UNSUPPORTED for
 * unknown flags; the reason, if the transport was aborted.
 * Thread safety: one call at a time per request. Since: 0.1
 */
wsync_status wsync_request_prepare(struct wsync_request *request,
                                   const struct wsync_request_options *options,
                                   struct wsync_error *err);

/**
 * Waits until a request that is being prepared is READY, at most
 * `deadline_ns` nanoseconds; 0 only looks. IN_PROGRESS if it is not ready by
 * then.
 *
 * Errors: AGREEMENT_TIMEOUT, PLAN_MISMATCH or REFUSED name the rank; those of
 * the transport.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_request_wait_ready(const struct wsync_request *request,
                                      uint64_t deadline_ns,
                                      struct wsync_error *err);

/**
 * Starts a READY request: enqueues all its work and returns, waiting neither
 * for peers nor for a device. `stream` is a cudaStream_t of the caller's: the
 * first byte is read or written after the work that is in it now, and work
 * that it is given later comes after the transfer, which may have failed: ask
 * wsync_request_outcome before serving. NULL is the default stream where
 * buffers are on a GPU, and nothing where all are on the host. Ranks of one
 * process that exchange bytes give a stream each: in one, what the second rank
 * sends would come after all that the first receives, which waits for it.
 *
 * Errors: INVALID_STATE unless READY, and for a stream that is being captured
 * into a graph; UNSUPPORTED for a stream where all buffers are on the host;
 * INVALID_ARGUMENT for one that CUDA does not know; what ended the request
 * meanwhile.
 * Thread safety: one call at a time per request. Since: 0.1
 */
wsync_status wsync_request_start(struct wsync_request *request,
                                 void *stream,
                                 struct wsync_error *err);

/**
 * Prepares, waits until READY, and starts. Waits for peers, but no longer
 * than the agree deadline. `options` may be NULL.
 *
 * Errors: those of prepare, wait_ready and start.
 * Thread safety: one call at a time per request. Since: 0.1
 */
wsync_status wsync_request_submit(struct wsync_request *request,
                                  const struct wsync_request_options *options,
                                  void *stream,
                                  struct wsync_error *err);

/**
 * OK once the request is DONE, IN_PROGRESS before, and the error of a FAILED
 * one. Never waits. OK says that it ended well on every rank; to serve, ask
 * wsync_request_outcome.
 *
 * Errors: whatever ended the request; INVALID_STATE if it was never prepared.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_request_test(const struct wsync_request *request,
                                struct wsync_error *err);

/**
 * Waits until the request has ended, at most `deadline_ns` nanoseconds; 0
 * only looks, WSYNC_NO_DEADLINE waits as long as the deadlines of the request
 * let it. Then like wsync_request_test. A request that is READY, and thus
 * waits to be started, is not waited for: IN_PROGRESS at once.
 *
 * Errors: whatever ended the request; INVALID_STATE if it was never prepared.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_request_wait(const struct wsync_request *request,
                                uint64_t deadline_ns,
                                struct wsync_error *err);

/**
 * Where the request is, a wsync_state; IDLE also if `request` is NULL
 * or not a request.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
uint32_t wsync_request_state(const struct wsync_request *request);

/**
 * Writes what became of this rank's destination memory, and of the whole copy
 * that it belongs to (of all copies, for a rank that belongs to none), each a
 * wsync_outcome. Only a COMPLETE copy may serve the new version.
 *
 * Errors: INVALID_STATE until the request has ended.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_request_outcome(const struct wsync_request *request,
                                   uint32_t *out_rank_outcome,
                                   uint32_t *out_copy_outcome,
                                   struct wsync_error *err);

/**
 * Number of steps of this rank's program; 0 if `request` is NULL or not a
 * request.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
uint32_t wsync_request_step_count(const struct wsync_request *request);

/**
 * Number of steps that are finished on this rank; see
 * wsync_plan_tensor_last_step. 0 if `request` is NULL or not a request.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
uint32_t wsync_request_steps_done(const struct wsync_request *request);

/**
 * Writes everything about the current or last execution as JSON,
 * NUL-terminated: state, outcome, error, bytes, time per phase, digests. With
 * a `capacity` of 0 only `out_needed` is written: the number of bytes, the
 * NUL included.
 *
 * Errors: BUFFER_TOO_SMALL.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_request_report(const struct wsync_request *request,
                                  char *buffer,
                                  size_t capacity,
                                  size_t *out_needed,
                                  struct wsync_error *err);

/**
 * Writes the digest of the tensor called `tensor` in the version that was
 * moved last: the sum mod 2^64 of a mix of each element's index and bits,
 * whatever the layout. Equal digests of two versions mean that nothing
 * changed.
 *
 * Errors: NOT_FOUND if the plan does not move such a tensor; INVALID_STATE
 * unless the last execution ended well and had WSYNC_REQUEST_FLAG_VERIFY.
 * Thread safety: any thread, concurrently. Since: 0.1
 */
wsync_status wsync_request_tensor_digest(const struct wsync_request *request,
                                         const char *tensor,
                                         uint64_t *out_digest,
                                         struct wsync_error *err);

/**
 * Ends the request. One that is being prepared withdraws; one that is READY
 * aborts the transport, for peers may have started; one that is running runs
 * to its end, and the bound buffers stay in use until then. Never waits for
 * peers. NULL is fine.
 *
 * Thread safety: once, with no other call on it under way. Since: 0.1
 */
void wsync_request_destroy(struct wsync_request *request);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#ifdef __cplusplus
extern "C" {
#endif

/**
 * 1 if this header and the loaded library fit: they have one binary interface,
 * and the library knows everything that the header declares. Otherwise 0.
 *
 * Thread safety: any thread, concurrently. Since: 0.1
 */
static inline int wsync_header_matches(void) {
  return wsync_abi_version() == WSYNC_ABI_VERSION && wsync_version() >= WSYNC_VERSION;
}

#ifdef __cplusplus
}
#endif

/*
 * Valid values for structs that are given to the library. All fields but
 * struct_size are their defaults.
 */
#define WSYNC_ERROR_INIT { sizeof(wsync_error), 0, 0, 0, 0, { 0 } }
#define WSYNC_ENV_INFO_INIT { sizeof(wsync_env_info), NULL, NULL, NULL, NULL, 0, 0 }
#define WSYNC_RANK_VIEWS_INIT \
  { sizeof(wsync_rank_views), 0, 0, \
    NULL, 0, sizeof(wsync_tensor), NULL, 0, sizeof(wsync_buffer), \
    NULL, 0, sizeof(wsync_view), NULL, 0, sizeof(wsync_alias) }
#define WSYNC_BUFFER_INFO_INIT { sizeof(wsync_buffer_info), 0, 0, 0, 0, 0, { 0 } }
#define WSYNC_MAPPING_OPTIONS_INIT \
  { sizeof(wsync_mapping_options), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, \
    NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0 }
#define WSYNC_TWO_STAGE_OPTIONS_INIT \
  { sizeof(wsync_two_stage_options), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, 0, NULL, 0 }
#define WSYNC_PLAN_OPTIONS_INIT \
  { sizeof(wsync_plan_options), 0, 0, 0, 0, 0, 0, NULL, 0, NULL, NULL, 0, 0, 0, 0 }
#define WSYNC_SIMULATE_OPTIONS_INIT { sizeof(wsync_simulate_options), 0, 0, 0, 0, 0 }
#define WSYNC_TOPOLOGY_OPTIONS_INIT \
  { sizeof(wsync_topology_options), NULL, 0, sizeof(wsync_host_group), NULL, 0, \
    sizeof(wsync_placement_run), NULL, 0, sizeof(wsync_speed_factor), NULL, 0, \
    sizeof(wsync_fabric_cut), 0, 0 }
#define WSYNC_RANK_PLACE_INIT \
  { sizeof(wsync_rank_place), 0, 0, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, NULL, 0 }
#define WSYNC_SITE_INIT { sizeof(wsync_site), 0, 0, 0, 0, 0, 0 }
#define WSYNC_SELECTOR_INIT \
  { sizeof(wsync_selector), NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, 0, 0 }
#define WSYNC_PROGRAM_INFO_INIT { sizeof(wsync_program_info), 0, 0, 0, 0, 0, 0, 0, 0 }
#define WSYNC_TRANSPORT_OPTIONS_INIT \
  { sizeof(wsync_transport_options), 0, 0, NULL, 0, 0, 0, NULL }
#define WSYNC_NCCL_OPTIONS_INIT \
  { sizeof(wsync_nccl_options), 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL, \
    0, 0 }
#define WSYNC_SESSION_OPTIONS_INIT { sizeof(wsync_session_options), 0 }
#define WSYNC_REQUEST_OPTIONS_INIT { sizeof(wsync_request_options), 0, 0, 0, 0, 0 }

#endif /* WEIGHTSYNC_H */
