//! What the strokes and bars of a picture mean.

use super::{INK, LINE};
use weightsync::plan::mapping::{Mapping, Pair, PeerLists};

/// One entry of the legend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
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
    pub(super) fn lines(
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

    pub(super) const fn text(self) -> &'static str {
        match self {
            Item::Stage1 => "stage 1",
            Item::Moved => "stage 1, moved off a shared device",
            Item::Local => "within one device",
            Item::Routed => "routed experts",
            Item::Receiver => "receives from the trainer rank of this colour",
            Item::Stage2 => "stage 2: forwards inside the group",
            Item::Forwarded => "gets everything by forwards",
        }
    }

    pub(super) fn width(self) -> f64 {
        66.0 + self.text().chars().count() as f64 * 6.2
    }

    pub(super) fn sample(self) -> String {
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
pub(super) enum Stroke {
    Plain,
    Moved,
    Local,
    Routed,
}

impl Stroke {
    pub(super) const fn dashes(self) -> &'static str {
        match self {
            Stroke::Plain => "",
            Stroke::Moved => r#" stroke-dasharray="7 4""#,
            Stroke::Local => r#" stroke-dasharray="9 3 2 3""#,
            Stroke::Routed => r#" stroke-dasharray="2 3""#,
        }
    }

    pub(super) fn says(self, pair: Pair) -> String {
        let Pair { sender, receiver } = pair;
        let why = match self {
            Stroke::Plain => "",
            Stroke::Moved => ", moved off a shared device",
            Stroke::Local => ", within one device",
            Stroke::Routed => ", routed experts",
        };
        format!("rank {sender} sends to rank {receiver}{why}")
    }
}
