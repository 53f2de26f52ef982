//! Ranks on GPUs, through NCCL.

pub mod library;

pub use library::Nccl;
