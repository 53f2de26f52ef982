//! Lays out compact JSON for a reader: what fits on a line stays on one.

/// Columns that a line may have before it is broken up.
const WIDTH: usize = 100;

/// Breaks up the long arrays and objects of a compact JSON text.
pub(super) fn pretty(compact: &str) -> String {
    let text = compact.as_bytes();
    let ends = ends_of(text);
    let mut out = Vec::with_capacity(2 * text.len());
    // Whether each open container is spread over lines.
    let mut spread: Vec<bool> = Vec::new();
    let mut i = 0;
    while i < text.len() {
        let is_spread = spread.last().copied().unwrap_or(false);
        match text[i] {
            b'{' | b'[' => {
                let column = out.len() - out.iter().rposition(|&b| b == b'\n').map_or(0, |n| n + 1);
                let is_long = column + spaced_len(text, i, ends[i]) > WIDTH;
                spread.push(is_long && ends[i] > i + 1);
                out.push(text[i]);
                if is_long && ends[i] > i + 1 {
                    new_line(&mut out, spread.len());
                }
            }
            b'}' | b']' => {
                spread.pop();
                if is_spread && i > 0 {
                    new_line(&mut out, spread.len());
                }
                out.push(text[i]);
            }
            b',' if is_spread => {
                out.push(b',');
                new_line(&mut out, spread.len());
            }
            b',' | b':' => out.extend([text[i], b' ']),
            b'"' => {
                out.extend(&text[i..=ends[i]]);
                i = ends[i];
            }
            other => out.push(other),
        }
        i += 1;
    }
    String::from_utf8(out).expect("pieces of a string at ASCII bounds")
}

/// For the first byte of a string or container, the index of its last one.
fn ends_of(text: &[u8]) -> Vec<usize> {
    let mut ends = vec![0; text.len()];
    let mut open = Vec::new();
    let mut i = 0;
    while i < text.len() {
        match text[i] {
            b'{' | b'[' => open.push(i),
            b'}' | b']' => {
                if let Some(start) = open.pop() {
                    ends[start] = i;
                }
            }
            b'"' => {
                let start = i;
                i += 1;
                while text[i] != b'"' {
                    i += if text[i] == b'\\' { 2 } else { 1 };
                }
                ends[start] = i;
            }
            _ => {}
        }
        i += 1;
    }
    ends
}

/// The length of a container on one line, as far as it matters.
fn spaced_len(text: &[u8], from: usize, to: usize) -> usize {
    let text = &text[from..=to];
    if text.len() > WIDTH {
        return text.len();
    }
    text.len() + text.iter().filter(|b| matches!(b, b',' | b':')).count()
}

fn new_line(out: &mut Vec<u8>, depth: usize) {
    out.push(b'\n');
    out.extend(std::iter::repeat_n(b' ', 2 * depth));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_things_stay_on_one_line() {
        let long = "x".repeat(90);
        let compact = format!(r#"{{"a":[[1,2],{{}}],"b":["{long}","\"[,"]}}"#);
        let want = format!(
            "{{\n  \"a\": [[1, 2], {{}}],\n  \"b\": [\n    \"{long}\",\n    \"\\\"[,\"\n  ]\n}}"
        );
        assert_eq!(pretty(&compact), want);
        assert_eq!(pretty("[]"), "[]");
    }
}
