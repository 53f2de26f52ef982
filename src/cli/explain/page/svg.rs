//! A drawing of a page, as SVG whose colours are those of the style sheet.
//!
//! Every mark carries a `<title>`, so that a browser shows its numbers where
//! the pointer rests; nothing needs a script.

use std::fmt::Write;

/// Left, top, width and height.
pub type Area = (f64, f64, f64, f64);

/// A drawing in the making.
pub struct Svg {
    out: String,
}

impl Svg {
    /// `name` is what the drawing is called by those who cannot see it.
    pub fn new(width: f64, height: f64, name: &str) -> Svg {
        Svg {
            out: format!(
                "<svg viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\" aria-label=\"{name}\">\n"
            ),
        }
    }

    pub fn rect(&mut self, class: &str, (x, y, w, h): Area, says: &str) {
        let says = escape(says);
        let _ = writeln!(
            self.out,
            r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}"><title>{says}</title></rect>"#
        );
    }

    /// An area that says nothing.
    pub fn ground(&mut self, (x, y, w, h): Area) {
        let _ = writeln!(
            self.out,
            r#"<rect class="ground" x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}"/>"#
        );
    }

    pub fn line(&mut self, class: &str, (x, y): (f64, f64), (right, low): (f64, f64), says: &str) {
        let says = escape(says);
        let _ = writeln!(
            self.out,
            r#"<line class="{class}" x1="{x:.1}" y1="{y:.1}" x2="{right:.1}" y2="{low:.1}"><title>{says}</title></line>"#
        );
    }

    /// Text of a class such as `end`, which says where it is anchored.
    pub fn text(&mut self, class: &str, x: f64, y: f64, what: &str) {
        let what = escape(what);
        let _ = writeln!(
            self.out,
            r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{what}</text>"#
        );
    }

    pub fn finish(mut self) -> String {
        self.out.push_str("</svg>\n");
        self.out
    }
}

/// Text as it may stand in a page.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
