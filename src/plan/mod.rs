//! From two layouts to a plan, and from a plan to the program of one rank.

pub mod program;
