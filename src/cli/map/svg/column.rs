//! One side of the picture, laid out from top to bottom.

use super::ink::Rect;
use super::scene::Kinds;
use super::{CARD_PAD, CARD_TITLE, MARGIN, NODE_WIDTH};
use std::fmt::Write;
use weightsync::plan::mapping::{Mapping, MappingSpec, Seat};

/// How densely ranks are packed, by how many stand in one column.
pub(super) struct Density {
    pub(super) pitch: f64,
    pub(super) node: f64,
    pub(super) font: f64,
    pub(super) stroke: f64,
    /// Space between stages, and between weight-mapping groups.
    pub(super) gap: f64,
}

impl Density {
    pub(super) fn of(rows: usize) -> Density {
        let (pitch, node, font, stroke, gap) = match rows {
            0..=24 => (32.0, 24.0, 12.5, 1.8, 12.0),
            25..=48 => (25.0, 19.0, 11.0, 1.5, 9.0),
            49..=96 => (19.0, 15.0, 10.0, 1.2, 7.0),
            97..=200 => (14.0, 12.0, 8.5, 1.0, 5.0),
            _ => (8.0, 7.0, 5.5, 0.6, 3.0),
        };
        Density {
            pitch,
            node,
            font,
            stroke,
            gap,
        }
    }
}

/// One source copy or one replica.
pub(super) struct Card {
    pub(super) at: Rect,
    pub(super) title: String,
    /// Which copy or replica this is.
    pub(super) copy: u32,
}

/// The name of a stage, beside its ranks.
pub(super) struct Label {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) text: String,
}

/// One side, laid out from top to bottom.
pub(super) struct Column {
    pub(super) cards: Vec<Card>,
    pub(super) labels: Vec<Label>,
    /// One per seat, in order.
    pub(super) nodes: Vec<Rect>,
    pub(super) height: f64,
}

/// How the two columns differ.
pub(super) struct Side {
    pub(super) x: f64,
    pub(super) width: f64,
    pub(super) node_x: f64,
    pub(super) label_x: f64,
    pub(super) title: &'static str,
    /// Ranks that belong closely together.
    pub(super) group: usize,
    pub(super) labels: Labels,
}

impl Column {
    pub(super) fn new(seats: &[Seat], side: &Side, density: &Density) -> Column {
        let mut column = Column {
            cards: Vec::new(),
            labels: Vec::new(),
            nodes: Vec::new(),
            height: 0.0,
        };
        let mut y = 0.0;
        for copy in seats.chunk_by(|a, b| a.copy == b.copy) {
            let top = y;
            y += CARD_TITLE + CARD_PAD / 2.0;
            for stage in copy.chunk_by(|a, b| (a.stage, a.expert) == (b.stage, b.expert)) {
                y = column.stage(stage, y, side, density);
            }
            y += CARD_PAD - density.gap - (density.pitch - density.node);
            column.cards.push(Card {
                at: Rect {
                    x: side.x,
                    y: top,
                    w: side.width,
                    h: y - top,
                },
                title: format!("{} {}", side.title, copy[0].copy),
                copy: copy[0].copy,
            });
            y += CARD_PAD;
        }
        column.height = y - CARD_PAD;
        column
    }

    /// Stacks the ranks of one stage from `y` on; answers where they end.
    fn stage(&mut self, seats: &[Seat], y: f64, side: &Side, density: &Density) -> f64 {
        let mut end = y;
        for (i, _) in seats.iter().enumerate() {
            if i > 0 && i % side.group == 0 {
                end += density.gap;
            }
            self.nodes.push(Rect {
                x: side.node_x,
                y: end,
                w: NODE_WIDTH,
                h: density.node,
            });
            end += density.pitch;
        }
        let label = side.labels.text(&seats[0]).map(|text| Label {
            x: side.label_x,
            y: y + density.node / 2.0,
            text,
        });
        self.labels.extend(label);
        end + density.gap
    }

    /// Says of each card how many there are like it, if it is not the only one.
    pub(super) fn say_how_many(&mut self, alike: &Kinds) {
        for card in &mut self.cards {
            if let Some(n) = alike.get(&card.copy).filter(|&&n| n > 1) {
                let _ = write!(card.title, "\u{a0} × {n} alike");
            }
        }
    }

    /// Moves the column down, so that it stands at the height of the other.
    pub(super) fn lower(&mut self, by: f64) {
        self.cards.iter_mut().for_each(|card| card.at.y += by);
        self.labels.iter_mut().for_each(|label| label.y += by);
        self.nodes.iter_mut().for_each(|node| node.y += by);
    }
}

/// Where both columns stand. The taller they are, the farther apart, so that
/// arrows do not become too steep.
pub(super) fn sides(
    spec: &MappingSpec,
    mapping: &Mapping,
    density: &Density,
    rows: usize,
) -> (Side, Side) {
    let between = (rows as f64 * density.pitch * 0.42).clamp(270.0, 760.0);
    let left_labels = if spec.source.pp > 1 { 66.0 } else { 0.0 };
    let plain = spec.source.ep == 1 && spec.source.cp == 1 && spec.source_ranks.is_none();
    let left = Side {
        x: MARGIN,
        width: CARD_PAD + left_labels + NODE_WIDTH + CARD_PAD,
        node_x: MARGIN + CARD_PAD + left_labels,
        label_x: MARGIN + CARD_PAD,
        title: if plain { "data parallel" } else { "copy" },
        group: usize::MAX,
        labels: Labels::of(spec.source.pp, 1),
    };

    let labels = Labels::of(spec.destination.pp, spec.destination.ep);
    let arcs = match mapping.group_size {
        1 => 0.0,
        m => 0.75 * arc_width(f64::from(m - 1), density.pitch) + 8.0,
    };
    let x = left.x + left.width + between;
    let right = Side {
        x,
        width: CARD_PAD + NODE_WIDTH + arcs + labels.width() + CARD_PAD,
        node_x: x + CARD_PAD,
        label_x: x + CARD_PAD + NODE_WIDTH + arcs + 12.0,
        title: "replica",
        group: match mapping.group_size {
            1 => usize::MAX,
            m => m as usize,
        },
        labels,
    };
    (left, right)
}

/// What tells the stages of a copy apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Labels {
    Nothing,
    Stages,
    Rows,
    Both,
}

impl Labels {
    fn of(pp: u32, ep: u32) -> Labels {
        match (pp > 1, ep > 1) {
            (false, false) => Labels::Nothing,
            (true, false) => Labels::Stages,
            (false, true) => Labels::Rows,
            (true, true) => Labels::Both,
        }
    }

    fn width(self) -> f64 {
        match self {
            Labels::Nothing => 0.0,
            Labels::Stages | Labels::Rows => 60.0,
            Labels::Both => 96.0,
        }
    }

    fn text(self, seat: &Seat) -> Option<String> {
        match self {
            Labels::Nothing => None,
            Labels::Stages => Some(format!("stage {}", seat.stage)),
            Labels::Rows => Some(format!("ep {}", seat.expert)),
            Labels::Both => Some(format!("stage {}, ep {}", seat.stage, seat.expert)),
        }
    }
}

/// How far an arc over so many rows reaches out.
pub(super) fn arc_width(rows: f64, pitch: f64) -> f64 {
    14.0 + (rows.sqrt() * pitch).min(110.0)
}
