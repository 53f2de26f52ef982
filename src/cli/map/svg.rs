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

use std::fmt::{Display, Write};

use weightsync::plan::mapping::{Mapping, MappingSpec, Pair, PeerLists, Seat};
use weightsync::{Error, Rank};

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

/// SVG text in the making.
#[derive(Default)]
struct Svg {
    out: String,
}

impl Svg {
    fn line(&mut self, text: impl Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.out, "{text}");
    }

    fn text(&mut self, x: f64, y: f64, size: f64, style: &str, text: impl Display) {
        let text = escape(&text.to_string());
        self.line(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" font-size="{size:.1}" {style}>{text}</text>"#
        ));
    }

    fn rect(&mut self, at: Rect, radius: f64, style: impl Display) {
        let Rect { x, y, w, h } = at;
        self.line(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}" rx="{radius:.1}" {style}/>"#
        ));
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[derive(Clone, Copy)]
struct Rect {
    x: f64,
    y: f64,
    w: f64,
    h: f64,
}

impl Rect {
    fn middle(&self) -> f64 {
        self.y + self.h / 2.0
    }

    fn right(&self) -> f64 {
        self.x + self.w
    }
}

/// How densely ranks are packed, by how many stand in one column.
struct Density {
    pitch: f64,
    node: f64,
    font: f64,
    stroke: f64,
    /// Space between stages, and between weight-mapping groups.
    gap: f64,
}

impl Density {
    fn of(rows: usize) -> Density {
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
struct Card {
    at: Rect,
    title: String,
}

/// The name of a stage, beside its ranks.
struct Label {
    x: f64,
    y: f64,
    text: String,
}

/// One side, laid out from top to bottom.
struct Column {
    cards: Vec<Card>,
    labels: Vec<Label>,
    /// One per seat, in order.
    nodes: Vec<Rect>,
    height: f64,
}

/// How the two columns differ.
struct Side {
    x: f64,
    width: f64,
    node_x: f64,
    label_x: f64,
    title: &'static str,
    /// Ranks that belong closely together.
    group: usize,
    labels: Labels,
}

impl Column {
    fn new(seats: &[Seat], side: &Side, density: &Density) -> Column {
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

    /// Moves the column down, so that it stands at the height of the other.
    fn lower(&mut self, by: f64) {
        self.cards.iter_mut().for_each(|card| card.at.y += by);
        self.labels.iter_mut().for_each(|label| label.y += by);
        self.nodes.iter_mut().for_each(|node| node.y += by);
    }
}

struct Picture<'a> {
    spec: &'a MappingSpec,
    mapping: &'a Mapping,
    routed: &'a [Pair],
    density: Density,
    left: Column,
    right: Column,
    /// Node of each rank that has one.
    node_of: Vec<Option<Rect>>,
    /// Colour of each source rank, by rank.
    colors: Vec<String>,
    sends: PeerLists,
    receives: PeerLists,
    legend: Vec<Vec<Item>>,
    width: f64,
    height: f64,
}

impl<'a> Picture<'a> {
    fn new(spec: &'a MappingSpec, mapping: &'a Mapping, routed: &'a [Pair]) -> Picture<'a> {
        let rows = mapping.sources.len().max(mapping.destinations.len());
        let density = Density::of(rows);
        let (left_side, right_side) = sides(spec, mapping, &density, rows);
        let mut left = Column::new(&mapping.sources, &left_side, &density);
        let mut right = Column::new(&mapping.destinations, &right_side, &density);
        let tallest = left.height.max(right.height);
        left.lower(HEADER + (tallest - left.height) / 2.0);
        right.lower(HEADER + (tallest - right.height) / 2.0);

        let ranks = spec.source_devices.len() + spec.destination_devices.len();
        let mut node_of = vec![None; ranks];
        let seats = mapping.sources.iter().chain(&mapping.destinations);
        for (seat, node) in seats.zip(left.nodes.iter().chain(&right.nodes)) {
            node_of[seat.rank.index()] = Some(*node);
        }
        let mut colors = vec![MUTED.to_string(); spec.source_devices.len()];
        for (i, seat) in mapping.sources.iter().enumerate() {
            colors[seat.rank.index()] = color(i);
        }
        let all = [&mapping.pairs[..], routed].concat();
        let width = (right_side.x + right_side.width + MARGIN).max(WIDTH_MIN);
        let receives = PeerLists::by_receiver(&all);
        let legend = Item::lines(mapping, routed, &receives, width - 2.0 * MARGIN);
        let height = HEADER + tallest + 2.0 * MARGIN + (legend.len() - 1) as f64 * LEGEND_LINE;
        Picture {
            spec,
            mapping,
            routed,
            density,
            left,
            right,
            node_of,
            colors,
            sends: PeerLists::by_sender(&all),
            receives,
            legend,
            width,
            height,
        }
    }

    fn node(&self, rank: Rank) -> Rect {
        self.node_of[rank.index()].expect("every rank of a pair has a seat")
    }

    fn open(&self, svg: &mut Svg, title: &str) {
        let (w, h) = (self.width, self.height);
        svg.line(format_args!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w:.0} {h:.0}" width="{w:.0}" height="{h:.0}" font-family="Inter, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif">"#
        ));
        svg.line(format_args!("<title>{}</title>", escape(title)));
        let all = Rect {
            x: 0.0,
            y: 0.0,
            w,
            h,
        };
        svg.rect(all, 0.0, r##"fill="#ffffff""##);
    }

    fn header(&self, svg: &mut Svg, title: &str) {
        let bold = format!(r#"fill="{INK}" font-weight="700""#);
        let muted = format!(r#"fill="{MUTED}""#);
        svg.text(MARGIN, 44.0, 22.0, &bold, title);
        svg.text(MARGIN, 66.0, 13.0, &muted, self.sizes());
        svg.text(MARGIN, 84.0, 13.0, &muted, self.counts());
        let heading = format!(r#"fill="{INK}" font-weight="600""#);
        svg.text(MARGIN, HEADER - 9.0, 13.0, &heading, "Trainer");
        let x = self.right.cards.first().map_or(0.0, |card| card.at.x);
        svg.text(x, HEADER - 9.0, 13.0, &heading, "Inference");
    }

    /// `TP 2 · PP 4 · DP 1 → TP 8 × 1 replica`
    fn sizes(&self) -> String {
        let (a, b) = (&self.spec.source, &self.spec.destination);
        let source = [("PP", a.pp), ("EP", a.ep), ("CP", a.cp), ("DP", a.dp)];
        let destination = [("PP", b.pp), ("EP", b.ep)];
        let join = |tp: u32, rest: &[(&str, u32)]| {
            let mut text = format!("TP {tp}");
            for (name, size) in rest.iter().filter(|(_, size)| *size > 1) {
                let _ = write!(text, " · {name} {size}");
            }
            text
        };
        format!(
            "{}  →  {} of {}",
            join(a.tp, &source),
            plural(b.replicas as usize, "replica"),
            join(b.tp, &destination)
        )
    }

    fn counts(&self) -> String {
        let mapping = self.mapping;
        let most = mapping.loads().iter().map(|&(_, load)| load).max();
        let mut text = format!("{} from trainer ranks", plural(mapping.pairs.len(), "pair"));
        if !self.routed.is_empty() {
            let _ = write!(text, ", {} for routed experts", self.routed.len());
        }
        if !mapping.forwards.is_empty() {
            let _ = write!(text, ", {}", plural(mapping.forwards.len(), "forward"));
        }
        let _ = write!(text, ", at most {} into one rank", most.unwrap_or(0));
        if !mapping.moved.is_empty() {
            let _ = write!(text, ", {} moved off a shared device", mapping.moved.len());
        }
        text
    }

    fn cards(&self, svg: &mut Svg) {
        for card in self.left.cards.iter().chain(&self.right.cards) {
            let style = format!(r#"fill="{CARD}" stroke="{LINE}""#);
            svg.rect(card.at, 10.0, style);
            let bold = format!(r#"fill="{INK}" font-weight="600""#);
            let (x, y) = (card.at.x + CARD_PAD, card.at.y + 18.0);
            svg.text(x, y, 12.0, &bold, &card.title);
        }
        let size = self.density.font.min(11.0);
        for label in self.left.labels.iter().chain(&self.right.labels) {
            let muted = format!(r#"fill="{MUTED}""#);
            svg.text(label.x, label.y + size * 0.35, size, &muted, &label.text);
        }
    }

    fn arrows(&self, svg: &mut Svg) {
        for pair in self.routed {
            self.straight(svg, *pair, Stroke::Routed);
        }
        // Moved pairs and same-device pairs are listed in the order of the pairs.
        let mut moved = self.mapping.moved.iter().peekable();
        let mut local = self.mapping.same_device.iter().peekable();
        for pair in &self.mapping.pairs {
            let is_moved =
                moved.next_if(|m| (m.sender, m.receiver) == (pair.sender, pair.receiver));
            let is_local = local.next_if_eq(&pair);
            let stroke = match (is_moved, is_local) {
                (Some(_), _) => Stroke::Moved,
                (None, Some(_)) => Stroke::Local,
                (None, None) => Stroke::Plain,
            };
            self.straight(svg, *pair, stroke);
        }
        for pair in &self.mapping.forwards {
            self.curved(svg, *pair);
        }
    }

    /// Stage 1: from the right edge of the sender to the left edge of the
    /// receiver, side by side with the others that end there.
    fn straight(&self, svg: &mut Svg, pair: Pair, stroke: Stroke) {
        let (from, to) = (self.node(pair.sender), self.node(pair.receiver));
        let senders = self.receives.get(pair.receiver);
        // A rank may send twice, routed experts being last.
        let is_it = |&s: &Rank| s == pair.sender;
        let which = match stroke {
            Stroke::Routed => senders.iter().rposition(is_it),
            _ => senders.iter().position(is_it),
        };
        let which = which.unwrap_or(0);
        let (x1, y1) = (from.right(), from.middle());
        let (x2, y2) = (to.x - 1.0, port(&to, which, senders.len()));
        let color = &self.colors[pair.sender.index()];
        let width = self.density.stroke;
        let head = 2.5 + 2.5 * width;
        let length = (x2 - x1).hypot(y2 - y1);
        let (dx, dy) = ((x2 - x1) / length, (y2 - y1) / length);
        let (bx, by) = (x2 - dx * head, y2 - dy * head);
        svg.line(format_args!(
            r#"<path d="M{x1:.1} {y1:.1}L{bx:.1} {by:.1}" stroke="{color}" stroke-width="{width}" fill="none"{}><title>{}</title></path>"#,
            stroke.dashes(),
            escape(&stroke.says(pair)),
        ));
        arrowhead(svg, (x2, y2), (dx, dy), head, color);
    }

    /// Stage 2: an arc at the right of the group, the wider the farther.
    fn curved(&self, svg: &mut Svg, pair: Pair) {
        let (from, to) = (self.node(pair.sender), self.node(pair.receiver));
        let down = to.y > from.y;
        // Arcs up and arcs down leave and arrive at different heights, so that
        // a pair of opposite forwards does not fall on one line.
        let shift = from.h * if down { 0.2 } else { -0.2 };
        let (x, y1, y2) = (from.right(), from.middle() + shift, to.middle() - shift);
        let rows = (to.y - from.y).abs() / self.density.pitch;
        let bulge = x + arc_width(rows, self.density.pitch) + if down { 0.0 } else { 5.0 };
        let width = self.density.stroke * 0.8;
        let head = 2.5 + 2.5 * width;
        let sender = self.receives.get(pair.sender).first();
        let color = sender.map_or(MUTED, |s| &self.colors[s.index()]);
        svg.line(format_args!(
            r#"<path d="M{x:.1} {y1:.1}C{bulge:.1} {y1:.1} {bulge:.1} {y2:.1} {:.1} {y2:.1}" stroke="{color}" stroke-width="{width:.2}" stroke-opacity="0.75" fill="none"><title>{}</title></path>"#,
            x + head,
            escape(&format!("rank {} forwards to rank {}", pair.sender, pair.receiver)),
        ));
        arrowhead(svg, (x + 1.0, y2), (-1.0, 0.0), head, color);
    }

    fn nodes(&self, svg: &mut Svg) {
        for (seat, at) in self.mapping.sources.iter().zip(&self.left.nodes) {
            let color = &self.colors[seat.rank.index()];
            match self.sends.get(seat.rank) {
                [] => self.rank(svg, seat, *at, "#ffffff", LINE, MUTED),
                _ => self.rank(svg, seat, *at, color, color, "#ffffff"),
            }
        }
        for (seat, at) in self.mapping.destinations.iter().zip(&self.right.nodes) {
            let senders = self.receives.get(seat.rank);
            let border = senders.first().map_or(LINE, |s| &self.colors[s.index()]);
            self.rank(svg, seat, *at, "#ffffff", border, INK);
            self.bar(svg, *at, senders);
        }
    }

    /// One rank: its number, its device, and the rest as a tool tip.
    fn rank(&self, svg: &mut Svg, seat: &Seat, at: Rect, fill: &str, border: &str, ink: &str) {
        svg.line("<g>");
        svg.line(format_args!(
            "<title>rank {}: device {}, stage {}, tp {}</title>",
            seat.rank, seat.device, seat.stage, seat.tensor
        ));
        let style = format!(r#"fill="{fill}" stroke="{border}" stroke-width="1.2""#);
        svg.rect(at, at.h.min(12.0) / 2.5, style);
        let size = self.density.font;
        let y = at.middle() + size * 0.35;
        let bold = format!(r#"fill="{ink}" font-weight="600""#);
        svg.text(at.x + 13.0, y, size, &bold, seat.rank);
        let right = format!(r#"fill="{ink}" fill-opacity="0.75" text-anchor="end""#);
        let device = format!("gpu {}", seat.device);
        svg.text(at.right() - 8.0, y, size * 0.82, &right, device);
        svg.line("</g>");
    }

    /// The colours of the senders at the left edge of a receiver.
    fn bar(&self, svg: &mut Svg, at: Rect, senders: &[Rank]) {
        let inset = 1.6;
        let h = (at.h - 2.0 * inset) / senders.len().max(1) as f64;
        for (i, sender) in senders.iter().enumerate() {
            let part = Rect {
                x: at.x + inset,
                y: at.y + inset + i as f64 * h,
                w: 5.5,
                h,
            };
            let style = format!(r#"fill="{}""#, self.colors[sender.index()]);
            svg.rect(part, 1.0, style);
        }
    }

    fn legend(&self, svg: &mut Svg) {
        let mut y = self.height - MARGIN - (self.legend.len() - 1) as f64 * LEGEND_LINE;
        let muted = format!(r#"fill="{MUTED}""#);
        for line in &self.legend {
            let mut x = MARGIN;
            for item in line {
                let sample = item.sample();
                svg.line(format_args!(
                    r#"<g transform="translate({x:.1} {y:.1})">{sample}</g>"#
                ));
                svg.text(x + 38.0, y + 4.0, 11.5, &muted, item.text());
                x += item.width();
            }
            y += LEGEND_LINE;
        }
    }
}

/// One entry of the legend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Stage1,
    Moved,
    Local,
    Routed,
    Receiver,
    Stage2,
    Forwarded,
}

impl Item {
    /// The entries that a picture needs, in lines no wider than `width`.
    fn lines(
        mapping: &Mapping,
        routed: &[Pair],
        receives: &PeerLists,
        width: f64,
    ) -> Vec<Vec<Item>> {
        let forwards = !mapping.forwards.is_empty();
        let mut destinations = mapping.destinations.iter();
        let only_forwarded = destinations.any(|seat| receives.get(seat.rank).is_empty());
        let items = [
            (true, Item::Stage1),
            (!mapping.moved.is_empty(), Item::Moved),
            (!mapping.same_device.is_empty(), Item::Local),
            (!routed.is_empty(), Item::Routed),
            (true, Item::Receiver),
            (forwards, Item::Stage2),
            (forwards && only_forwarded, Item::Forwarded),
        ];
        let mut lines = vec![Vec::new()];
        let mut x = 0.0;
        for (_, item) in items.into_iter().filter(|(needed, _)| *needed) {
            if x > 0.0 && x + item.width() > width {
                lines.push(Vec::new());
                x = 0.0;
            }
            x += item.width();
            lines.last_mut().expect("there is a line").push(item);
        }
        lines
    }

    const fn text(self) -> &'static str {
        match self {
            Item::Stage1 => "stage 1",
            Item::Moved => "stage 1, moved off a shared device",
            Item::Local => "within one device: a local copy",
            Item::Routed => "routed experts",
            Item::Receiver => "receives from the trainer rank of this colour",
            Item::Stage2 => "stage 2: forwards inside the group",
            Item::Forwarded => "gets everything by forwards",
        }
    }

    fn width(self) -> f64 {
        66.0 + self.text().chars().count() as f64 * 6.2
    }

    fn sample(self) -> String {
        let arrow = |stroke: Stroke| {
            format!(
                r#"<path d="M0 0H22" stroke="{INK}" stroke-width="1.6"{}/><path d="M29 0L22 -3.4L22 3.4Z" fill="{INK}"/>"#,
                stroke.dashes()
            )
        };
        let node = |border: &str| {
            format!(
                r##"<rect y="-7" width="29" height="14" rx="4" fill="#ffffff" stroke="{border}" stroke-width="1.2"/>"##
            )
        };
        match self {
            Item::Stage1 => arrow(Stroke::Plain),
            Item::Moved => arrow(Stroke::Moved),
            Item::Local => arrow(Stroke::Local),
            Item::Routed => arrow(Stroke::Routed),
            Item::Receiver => {
                let bar = r#"<rect x="1.6" y="-5.4" width="5.5" height="10.8" rx="1" "#;
                format!(r#"{}{bar}fill="{INK}"/>"#, node(INK))
            }
            Item::Stage2 => format!(
                r#"<path d="M6 -6C30 -6 30 6 13 6" stroke="{INK}" stroke-width="1.4" fill="none"/><path d="M6 6L13 2.6L13 9.4Z" fill="{INK}"/>"#
            ),
            Item::Forwarded => node(LINE),
        }
    }
}

#[derive(Clone, Copy)]
enum Stroke {
    Plain,
    Moved,
    Local,
    Routed,
}

impl Stroke {
    const fn dashes(self) -> &'static str {
        match self {
            Stroke::Plain => "",
            Stroke::Moved => r#" stroke-dasharray="7 4""#,
            Stroke::Local => r#" stroke-dasharray="9 3 2 3""#,
            Stroke::Routed => r#" stroke-dasharray="2 3""#,
        }
    }

    fn says(self, pair: Pair) -> String {
        let Pair { sender, receiver } = pair;
        let why = match self {
            Stroke::Plain => "",
            Stroke::Moved => ", moved off a shared device",
            Stroke::Local => ", a local copy",
            Stroke::Routed => ", routed experts",
        };
        format!("rank {sender} sends to rank {receiver}{why}")
    }
}

/// Where both columns stand. The taller they are, the farther apart, so that
/// arrows do not become too steep.
fn sides(spec: &MappingSpec, mapping: &Mapping, density: &Density, rows: usize) -> (Side, Side) {
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
enum Labels {
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
fn arc_width(rows: f64, pitch: f64) -> f64 {
    14.0 + (rows.sqrt() * pitch).min(110.0)
}

/// The height at which the i-th of n arrows meets a node.
fn port(at: &Rect, i: usize, n: usize) -> f64 {
    at.y + at.h * (i as f64 + 1.0) / (n as f64 + 1.0)
}

fn arrowhead(svg: &mut Svg, (x, y): (f64, f64), (dx, dy): (f64, f64), length: f64, color: &str) {
    let half = length * 0.48;
    let (bx, by) = (x - dx * length, y - dy * length);
    let (ax, ay) = (bx - dy * half, by + dx * half);
    let (cx, cy) = (bx + dy * half, by - dx * half);
    svg.line(format_args!(
        r#"<path d="M{x:.1} {y:.1}L{ax:.1} {ay:.1}L{cx:.1} {cy:.1}Z" fill="{color}"/>"#
    ));
}

/// The i-th colour: hues a golden angle apart, so that neighbours differ, in
/// three shades of even brightness (Oklab).
fn color(i: usize) -> String {
    let hue = (i as f64 * 137.508 + 255.0).to_radians();
    let lightness = [0.58, 0.48, 0.67][i / 9 % 3];
    let (a, b) = (0.135 * hue.cos(), 0.135 * hue.sin());
    let l = (lightness + 0.3963377774 * a + 0.2158037573 * b).powi(3);
    let m = (lightness - 0.1055613458 * a - 0.0638541728 * b).powi(3);
    let s = (lightness - 0.0894841775 * a - 1.2914855480 * b).powi(3);
    let channel = |linear: f64| {
        let gamma = match linear.clamp(0.0, 1.0) {
            x if x <= 0.0031308 => 12.92 * x,
            x => 1.055 * x.powf(1.0 / 2.4) - 0.055,
        };
        (gamma * 255.0).round() as u8
    };
    format!(
        "#{:02x}{:02x}{:02x}",
        channel(4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s),
        channel(-1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s),
        channel(-0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s),
    )
}

fn plural(n: usize, word: &str) -> String {
    match n {
        1 => format!("1 {word}"),
        n => format!("{n} {word}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_escaped() {
        assert_eq!(
            escape(r#"<a b="&'">"#),
            "&lt;a b=&quot;&amp;&#39;&quot;&gt;"
        );
    }

    #[test]
    fn neighbouring_colors_differ() {
        for i in 0..200 {
            assert_ne!(color(i), color(i + 1));
        }
    }
}
