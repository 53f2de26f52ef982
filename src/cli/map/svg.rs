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
//!
//! Of many ranks, replicas that are served alike are drawn once (`scene`).

mod column;
mod ink;
mod legend;
mod picture;
mod scene;

use ink::Svg;
use picture::Picture;
use scene::Scene;
use weightsync::Error;
use weightsync::plan::mapping::{Mapping, MappingSpec, Pair, Seat};

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

/// What a picture is of.
pub struct Subject<'a> {
    pub title: &'a str,
    pub spec: &'a MappingSpec,
    pub mapping: &'a Mapping,
    /// Pairs of routed experts beside the mapping, and who may send them.
    pub routed: &'a [Pair],
    pub routed_sources: &'a [Seat],
}

/// Draws one mapping.
pub fn draw(subject: &Subject) -> Result<String, Error> {
    let scene = Scene::new(subject);
    let count = scene.rank_count();
    if count > RANK_COUNT_MAX {
        return Err(Error::limit(format!(
            "a picture of the mapping has {count} ranks, at most {RANK_COUNT_MAX} make one"
        )));
    }
    let picture = Picture::new(subject, &scene);
    let mut svg = Svg::default();
    picture.open(&mut svg);
    picture.header(&mut svg);
    picture.cards(&mut svg);
    picture.arrows(&mut svg);
    picture.nodes(&mut svg);
    picture.legend(&mut svg);
    svg.line("</svg>");
    Ok(svg.out)
}
