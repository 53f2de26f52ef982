//! The functions, by name.

use crate::config::ncclConfig_t;
use crate::types::{cudaStream_t, ncclComm_t, ncclDataType_t, ncclResult_t, ncclUniqueId};
use std::ffi::{CStr, c_char, c_int, c_void};

/// A function of NCCL and the release that brought it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol {
    pub name: &'static str,
    /// As `ncclGetVersion` counts; 0 for what every supported release has.
    pub since: c_int,
    /// What it is good for, in a few words.
    pub purpose: &'static str,
}

macro_rules! api {
    (
        required { $(fn $need:ident($($n_arg:ident: $n_ty:ty),*) -> $n_ret:ty;)* }
        optional { $($since:literal $purpose:literal
                     fn $may:ident($($m_arg:ident: $m_ty:ty),*) -> $m_ret:ty;)* }
    ) => {
        /// One copy of NCCL. Calling any of these is unsafe: NCCL trusts its
        /// arguments, and allows one thread at a time per communicator.
        #[derive(Clone, Copy, Debug)]
        pub struct Api {
            $(pub $need: unsafe extern "C" fn($($n_arg: $n_ty),*) -> $n_ret,)*
            $(pub $may: Option<unsafe extern "C" fn($($m_arg: $m_ty),*) -> $m_ret>,)*
        }

        /// What must be there.
        pub const REQUIRED: &[&str] = &[$(stringify!($need)),*];

        /// What may be there.
        pub const OPTIONAL: &[Symbol] = &[$(Symbol {
            name: stringify!($may),
            since: $since,
            purpose: $purpose,
        }),*];

        impl Api {
            /// Takes the table from `find`, which returns NULL for a name that
            /// it does not know. Fails with the first required one missing.
            ///
            /// # Safety
            ///
            /// What `find` returns for a name is that function of NCCL.
            pub(crate) unsafe fn fill(
                find: impl Fn(&CStr) -> *mut c_void,
            ) -> Result<Api, &'static str> {
                Ok(Api {
                    $($need: {
                        const NAME: &CStr = c_name(concat!(stringify!($need), "\0"));
                        let address = find(NAME);
                        if address.is_null() {
                            return Err(stringify!($need));
                        }
                        // SAFETY: not NULL, and of this type by the caller's word.
                        unsafe { std::mem::transmute::<
                            *mut c_void,
                            unsafe extern "C" fn($($n_arg: $n_ty),*) -> $n_ret,
                        >(address) }
                    },)*
                    $($may: {
                        const NAME: &CStr = c_name(concat!(stringify!($may), "\0"));
                        // SAFETY: NULL is None; else as above.
                        unsafe { std::mem::transmute::<
                            *mut c_void,
                            Option<unsafe extern "C" fn($($m_arg: $m_ty),*) -> $m_ret>,
                        >(find(NAME)) }
                    },)*
                })
            }

            /// True if this copy has an optional function.
            pub fn has(&self, name: &str) -> bool {
                match name {
                    $(stringify!($may) => self.$may.is_some(),)*
                    _ => false,
                }
            }
        }
    };
}

const fn c_name(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(name) => name,
        Err(_) => panic!("a name with a NUL in it"),
    }
}

api! {
    required {
        fn ncclGetVersion(version: *mut c_int) -> ncclResult_t;
        fn ncclGetErrorString(result: ncclResult_t) -> *const c_char;
        fn ncclGetLastError(comm: ncclComm_t) -> *const c_char;
        fn ncclGetUniqueId(id: *mut ncclUniqueId) -> ncclResult_t;
        fn ncclCommInitRankConfig(
            comm: *mut ncclComm_t, nranks: c_int, id: ncclUniqueId, rank: c_int,
            config: *mut ncclConfig_t) -> ncclResult_t;
        fn ncclCommSplit(
            comm: ncclComm_t, color: c_int, key: c_int, newcomm: *mut ncclComm_t,
            config: *mut ncclConfig_t) -> ncclResult_t;
        fn ncclCommFinalize(comm: ncclComm_t) -> ncclResult_t;
        fn ncclCommDestroy(comm: ncclComm_t) -> ncclResult_t;
        fn ncclCommAbort(comm: ncclComm_t) -> ncclResult_t;
        fn ncclCommGetAsyncError(comm: ncclComm_t, error: *mut ncclResult_t) -> ncclResult_t;
        fn ncclCommCount(comm: ncclComm_t, count: *mut c_int) -> ncclResult_t;
        fn ncclCommCuDevice(comm: ncclComm_t, device: *mut c_int) -> ncclResult_t;
        fn ncclCommUserRank(comm: ncclComm_t, rank: *mut c_int) -> ncclResult_t;
        fn ncclGroupStart() -> ncclResult_t;
        fn ncclGroupEnd() -> ncclResult_t;
        fn ncclSend(
            buffer: *const c_void, count: usize, dtype: ncclDataType_t, peer: c_int,
            comm: ncclComm_t, stream: cudaStream_t) -> ncclResult_t;
        fn ncclRecv(
            buffer: *mut c_void, count: usize, dtype: ncclDataType_t, peer: c_int,
            comm: ncclComm_t, stream: cudaStream_t) -> ncclResult_t;
    }
    optional {
        21900 "registered user buffers"
        fn ncclCommRegister(
            comm: ncclComm_t, buffer: *mut c_void, bytes: usize,
            handle: *mut *mut c_void) -> ncclResult_t;
        21900 "registered user buffers"
        fn ncclCommDeregister(comm: ncclComm_t, handle: *mut c_void) -> ncclResult_t;
        21900 "memory that NCCL can map on peers"
        fn ncclMemAlloc(buffer: *mut *mut c_void, bytes: usize) -> ncclResult_t;
        21900 "memory that NCCL can map on peers"
        fn ncclMemFree(buffer: *mut c_void) -> ncclResult_t;
        22700 "a new communicator for the survivors of a failure"
        fn ncclCommShrink(
            comm: ncclComm_t, exclude: *mut c_int, exclude_count: c_int,
            newcomm: *mut ncclComm_t, config: *mut ncclConfig_t, flags: c_int) -> ncclResult_t;
        22807 "stopping a borrowed communicator without freeing it"
        fn ncclCommRevoke(comm: ncclComm_t, flags: c_int) -> ncclResult_t;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_required_function_is_named_and_optional_ones_are_not_needed() {
        // SAFETY: nothing in the table is called.
        let none = unsafe { Api::fill(|_| std::ptr::null_mut()) };
        assert_eq!(none.unwrap_err(), "ncclGetVersion");
        let old = |name: &CStr| match REQUIRED.contains(&name.to_str().unwrap()) {
            true => std::ptr::dangling_mut(),
            false => std::ptr::null_mut(),
        };
        // SAFETY: as above.
        let old = unsafe { Api::fill(old) }.unwrap();
        assert!(OPTIONAL.iter().all(|s| !old.has(s.name)));
        // SAFETY: as above.
        let new = unsafe { Api::fill(|_| std::ptr::dangling_mut()) }.unwrap();
        assert!(OPTIONAL.iter().all(|s| new.has(s.name)));
        assert!(!new.has("ncclSend2"));
    }
}
