//! SVG text in the making: shapes, letters, colours.

use std::fmt::{Display, Write};

/// SVG text in the making.
#[derive(Default)]
pub(super) struct Svg {
    pub(super) out: String,
}

impl Svg {
    pub(super) fn line(&mut self, text: impl Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.out, "{text}");
    }

    pub(super) fn text(&mut self, x: f64, y: f64, size: f64, style: &str, text: impl Display) {
        let text = escape(&text.to_string());
        self.line(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" font-size="{size:.1}" {style}>{text}</text>"#
        ));
    }

    pub(super) fn rect(&mut self, at: Rect, radius: f64, style: impl Display) {
        let Rect { x, y, w, h } = at;
        self.line(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}" rx="{radius:.1}" {style}/>"#
        ));
    }
}

pub(super) fn escape(text: &str) -> String {
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
pub(super) struct Rect {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) w: f64,
    pub(super) h: f64,
}

impl Rect {
    pub(super) fn middle(&self) -> f64 {
        self.y + self.h / 2.0
    }

    pub(super) fn right(&self) -> f64 {
        self.x + self.w
    }
}

pub(super) fn arrowhead(
    svg: &mut Svg,
    (x, y): (f64, f64),
    (dx, dy): (f64, f64),
    length: f64,
    color: &str,
) {
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
pub(super) fn color(i: usize) -> String {
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
