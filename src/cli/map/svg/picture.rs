//! The whole picture: two columns of ranks, and the arrows between them.

use super::column::{Column, Density, arc_width, sides};
use super::ink::{Rect, Svg, arrowhead, color, escape};
use super::legend::{Item, Stroke};
use super::scene::{Scene, count_copies};
use super::{CARD, CARD_PAD, HEADER, INK, LEGEND_LINE, LINE, MARGIN, MUTED, Subject, WIDTH_MIN};
use std::fmt::Write;
use weightsync::Rank;
use weightsync::plan::mapping::{Mapping, Pair, PeerLists, Seat};

pub(super) struct Picture<'a> {
    subject: &'a Subject<'a>,
    scene: &'a Scene,
    /// What is drawn of the subject.
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
    pub(super) fn new(subject: &'a Subject<'a>, scene: &'a Scene) -> Picture<'a> {
        let (spec, mapping, routed) = (subject.spec, &scene.mapping, &scene.routed[..]);
        let rows = mapping.sources.len().max(mapping.destinations.len());
        let density = Density::of(rows);
        let (left_side, right_side) = sides(spec, mapping, &density, rows);
        let mut left = Column::new(&mapping.sources, &left_side, &density);
        let mut right = Column::new(&mapping.destinations, &right_side, &density);
        right.say_how_many(&scene.replicas);
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
        let [_, inference] = headings(subject, scene);
        let width = (right_side.x + right_side.width + MARGIN)
            .max(right_side.x + text_width(&inference, 13.0) + MARGIN)
            .max(text_width(&counts(subject), 13.0) + 2.0 * MARGIN)
            .max(WIDTH_MIN);
        let receives = PeerLists::by_receiver(&all);
        let legend = Item::lines(mapping, routed, &receives, width - 2.0 * MARGIN);
        let height = HEADER + tallest + 2.0 * MARGIN + (legend.len() - 1) as f64 * LEGEND_LINE;
        Picture {
            subject,
            scene,
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
        self.node_of[rank.index()].expect("a scene seats every rank of its pairs")
    }

    pub(super) fn open(&self, svg: &mut Svg) {
        let (w, h) = (self.width, self.height);
        svg.line(format_args!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w:.0} {h:.0}" width="{w:.0}" height="{h:.0}" font-family="Inter, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif">"#
        ));
        svg.line(format_args!(
            "<title>{}</title>",
            escape(self.subject.title)
        ));
        let all = Rect {
            x: 0.0,
            y: 0.0,
            w,
            h,
        };
        svg.rect(all, 0.0, r##"fill="#ffffff""##);
    }

    pub(super) fn header(&self, svg: &mut Svg) {
        let bold = format!(r#"fill="{INK}" font-weight="700""#);
        let muted = format!(r#"fill="{MUTED}""#);
        svg.text(MARGIN, 44.0, 22.0, &bold, self.subject.title);
        svg.text(MARGIN, 66.0, 13.0, &muted, self.sizes());
        svg.text(MARGIN, 84.0, 13.0, &muted, counts(self.subject));
        let heading = format!(r#"fill="{INK}" font-weight="600""#);
        let [trainer, inference] = headings(self.subject, self.scene);
        svg.text(MARGIN, HEADER - 9.0, 13.0, &heading, trainer);
        let x = self.right.cards.first().map_or(0.0, |card| card.at.x);
        svg.text(x, HEADER - 9.0, 13.0, &heading, inference);
    }

    /// `TP 2 · PP 4 · DP 1 → TP 8 × 1 replica`
    fn sizes(&self) -> String {
        let (a, b) = (&self.subject.spec.source, &self.subject.spec.destination);
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

    pub(super) fn cards(&self, svg: &mut Svg) {
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

    pub(super) fn arrows(&self, svg: &mut Svg) {
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

    pub(super) fn nodes(&self, svg: &mut Svg) {
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

    pub(super) fn legend(&self, svg: &mut Svg) {
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

/// The height at which the i-th of n arrows meets a node.
fn port(at: &Rect, i: usize, n: usize) -> f64 {
    at.y + at.h * (i as f64 + 1.0) / (n as f64 + 1.0)
}

/// Counts of the whole mapping, whatever is drawn of it.
fn counts(subject: &Subject) -> String {
    let Subject {
        mapping, routed, ..
    } = subject;
    let all = [&mapping.pairs[..], routed].concat();
    let loads = mapping.loads_by(&PeerLists::by_receiver(&all));
    let most = loads.iter().map(|&(_, load)| load).max();
    let mut text = format!("{} from trainer ranks", plural(all.len(), "pair"));
    if !routed.is_empty() {
        let _ = write!(text, " ({} of them for routed experts)", routed.len());
    }
    if !mapping.forwards.is_empty() {
        let _ = write!(text, ", {}", plural(mapping.forwards.len(), "forward"));
    }
    let most = most.unwrap_or(0);
    let _ = write!(text, ", at most {most} from trainers into one rank");
    if !mapping.moved.is_empty() {
        let _ = write!(text, ", {} moved off a shared device", mapping.moved.len());
    }
    text
}

/// The headings of both sides: `Inference: 1 of 16 replicas`, or just
/// `Inference` if all are drawn.
fn headings(subject: &Subject, scene: &Scene) -> [String; 2] {
    let copies = count_copies(&scene.mapping.sources);
    let mut trainer = "Trainer".to_string();
    if copies < scene.copies {
        let _ = write!(trainer, ": {copies} of {} copies", scene.copies);
    }
    for (position, n) in scene.positions.iter().filter(|(_, n)| **n > 1) {
        let _ = write!(trainer, ", tp {position} × {n} alike");
    }
    let inference = match scene.replicas.len() {
        0 => "Inference".to_string(),
        n => format!(
            "Inference: {n} of {} replicas",
            subject.spec.destination.replicas
        ),
    };
    [trainer, inference]
}

/// About how wide a line of text of this size is.
fn text_width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * 0.56
}

fn plural(n: usize, word: &str) -> String {
    match n {
        1 => format!("1 {word}"),
        n => format!("{n} {word}s"),
    }
}
