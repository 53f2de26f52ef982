//! Where in a JSON text a reader stopped, as a path such as
//! `parts[0].tensors[3].dtype`.

/// One level of nesting.
enum Level {
    /// The last key seen, and whether its colon was passed.
    Object(String, bool),
    Array(usize),
}

/// The path of the value that ends at, or contains, byte `stop`.
pub(super) fn path_at(text: &[u8], stop: usize) -> String {
    let mut levels: Vec<Level> = Vec::new();
    let text = &text[..stop.min(text.len())];
    let mut i = 0;
    while i < text.len() {
        match text[i] {
            b'{' => levels.push(Level::Object(String::new(), false)),
            b'[' => levels.push(Level::Array(0)),
            b'}' | b']' => {
                levels.pop();
            }
            b',' => match levels.last_mut() {
                Some(Level::Array(n)) => *n += 1,
                Some(Level::Object(key, passed)) => {
                    key.clear();
                    *passed = false;
                }
                None => {}
            },
            b':' => {
                if let Some(Level::Object(_, passed)) = levels.last_mut() {
                    *passed = true;
                }
            }
            b'"' => {
                let end = string_end(text, i);
                if let Some(Level::Object(key, false)) = levels.last_mut() {
                    let last = end.saturating_sub(1).max(i + 1).min(text.len());
                    *key = String::from_utf8_lossy(&text[i + 1..last]).into_owned();
                }
                i = end;
                continue;
            }
            _ => {}
        }
        i += 1;
    }
    spell(&levels)
}

/// The index after the closing quote of the string that starts at `from`.
fn string_end(text: &[u8], from: usize) -> usize {
    let mut i = from + 1;
    while i < text.len() {
        match text[i] {
            b'\\' => i += 2,
            b'"' => return i + 1,
            _ => i += 1,
        }
    }
    text.len()
}

fn spell(levels: &[Level]) -> String {
    let mut path = String::new();
    for level in levels {
        match level {
            Level::Array(n) => path.push_str(&format!("[{n}]")),
            Level::Object(key, _) if key.is_empty() => {}
            Level::Object(key, _) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
            }
        }
    }
    path
}

/// The byte offset of a 1-based line and a column of bytes.
pub(super) fn offset_of(text: &[u8], line: usize, column: usize) -> usize {
    let before: usize = text
        .split_inclusive(|&b| b == b'\n')
        .take(line.saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    (before + column).min(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_the_value_at_an_offset() {
        let text = br#"{"a": [{"b": 1}, {"c": [1, "x,]\"", 3]}], "d": 5}"#;
        let at = |needle: &str| {
            let s = std::str::from_utf8(text).unwrap();
            path_at(text, s.find(needle).unwrap() + needle.len())
        };
        assert_eq!(at("\"b\": 1"), "a[0].b");
        assert_eq!(at(", 3"), "a[1].c[2]");
        assert_eq!(at("\"d\": 5"), "d");
        assert_eq!(path_at(text, 4), "a");
        assert_eq!(path_at(b"", 9), "");
        assert_eq!(offset_of(b"ab\ncd\n", 2, 1), 4);
    }
}
