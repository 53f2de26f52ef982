//! From two layouts to a plan, and from a plan to the program of one rank.

pub mod decision;
pub mod program;

mod cells;
mod derive;
mod line;
mod piece;
mod ranks;
mod tables;
