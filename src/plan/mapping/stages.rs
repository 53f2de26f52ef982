//! Which source stage feeds which destination stage.

use crate::error::Result;

use super::constraint;

/// One source stage and one destination stage that have layers in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StageEdge {
    pub source: usize,
    pub destination: usize,
}

/// All edges, by source stage, then by destination stage.
///
/// Stages are runs of consecutive layers. If one count divides the other, the
/// shorter runs lie inside the longer ones:
///
/// ```text
///   source, 4 stages       | 0 | 1 | 2 | 3 |      | 0     | 1     |
///   destination            | 0     | 1     |      | 0 | 1 | 2 | 3 |
///   edges               0-0, 1-0, 2-1, 3-1     0-0, 0-1, 1-2, 1-3
/// ```
///
/// If neither divides the other, a stage would be cut somewhere in its middle,
/// and only the layers could tell where.
pub(super) fn stage_edges(
    variant: &str,
    source: usize,
    destination: usize,
) -> Result<Vec<StageEdge>> {
    if source.is_multiple_of(destination) {
        let interval = source / destination;
        return Ok((0..source).map(|i| edge(i, i / interval)).collect());
    }
    if destination.is_multiple_of(source) {
        let interval = destination / source;
        return Ok((0..destination).map(|j| edge(j / interval, j)).collect());
    }
    Err(constraint(format_args!(
        "{variant} mapping: of source PP {source} and destination PP {destination} \
         neither divides the other, so that stages overlap in part"
    )))
}

fn edge(source: usize, destination: usize) -> StageEdge {
    StageEdge {
        source,
        destination,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edges(source: usize, destination: usize) -> Vec<(usize, usize)> {
        stage_edges("two-stage", source, destination)
            .unwrap()
            .into_iter()
            .map(|e| (e.source, e.destination))
            .collect()
    }

    #[test]
    fn aligned_stages() {
        assert_eq!(edges(4, 2), [(0, 0), (1, 0), (2, 1), (3, 1)]);
        assert_eq!(edges(2, 4), [(0, 0), (0, 1), (1, 2), (1, 3)]);
        assert_eq!(edges(1, 1), [(0, 0)]);
    }

    #[test]
    fn overlapping_stages_are_named() {
        let e = stage_edges("two-stage", 4, 3).unwrap_err();
        assert!(e.message.contains("source PP 4"), "{e}");
        assert!(e.message.contains("destination PP 3"), "{e}");
        assert!(e.message.contains("`direct`"), "{e}");
    }
}
