//! One mapping as a picture.
//!
//! ```text
//!   trainer                               inference
//!   ┌ copy 0 ─────────┐                 ┌ replica 0 ─────────┐
//!   │ stage 0  [ 0 ]──┼────────────────►│▌[ 4 ]─╮    stage 0 │
//!   │ stage 1  [ 1 ]──┼──────────╲      │ [ 5 ]◄╯            │
//!   └─────────────────┘           ╲     └────────────────────┘
//! ```
//!
//! Every trainer rank has a colour of its own. Straight arrows are stage 1,
//! curved ones are stage 2. A receiver wears the colours of the trainer ranks
//! that send to it as a bar at its left edge; a rank without a bar gets
//! everything by forwards.

mod column;
mod ink;
mod legend;
mod picture;

use ink::Svg;
use picture::Picture;
use weightsync::Error;
use weightsync::plan::mapping::{Mapping, MappingSpec, Pair};

/// More ranks than this make no picture that a person understands.
const RANK_COUNT_MAX: usize = 1024;

const MARGIN: f64 = 36.0;
/// Room for the title lines.
const WIDTH_MIN: f64 = 700.0;
const HEADER: f64 = 118.0;
const NODE_WIDTH: f64 = 92.0;
const CARD_PAD: f64 = 12.0;
const CARD_TITLE: f64 = 24.0;
const LEGEND_LINE: f64 = 24.0;

const INK: &str = "#1e293b";
const MUTED: &str = "#64748b";
const LINE: &str = "#cbd5e1";
const CARD: &str = "#f8fafc";

/// Draws `mapping`, and the pairs of routed experts beside it.
pub fn draw(
    title: &str,
    spec: &MappingSpec,
    mapping: &Mapping,
    routed: &[Pair],
) -> Result<String, Error> {
    let count = mapping.sources.len() + mapping.destinations.len();
    if count > RANK_COUNT_MAX {
        return Err(Error::limit(format!(
            "the mapping has {count} ranks, at most {RANK_COUNT_MAX} make a picture"
        )));
    }
    let picture = Picture::new(spec, mapping, routed);
    let mut svg = Svg::default();
    picture.open(&mut svg, title);
    picture.header(&mut svg, title);
    picture.cards(&mut svg);
    picture.arrows(&mut svg);
    picture.nodes(&mut svg);
    picture.legend(&mut svg);
    svg.line("</svg>");
    Ok(svg.out)
}
