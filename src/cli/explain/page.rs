//! One plan as one page: no script, no file beside it.

use crate::account::Account;
use crate::table::{bytes, grouped, time};
use std::fmt::Write;
use svg::escape;
use timeline::Picture;
use weightsync::plan::report::PlanReport;
use weightsync::plan::traffic::{RankLoad, Traffic};
use weightsync::sim::Certificate;
use weightsync::tune::Rehearsal;

mod links;
mod loads;
mod matrix;
mod svg;
mod table;
mod timeline;

const STYLE: &str = include_str!("page/style.css");
/// Width of drawings.
const WIDTH: f64 = 1040.0;
/// Colours that tell stages apart, `part0` to `part3`.
const PART_COUNT: usize = 4;

/// The page.
pub fn draw(account: &Account, t: &Traffic, note: Option<&str>) -> String {
    let r = &account.report;
    let mut out = String::new();
    let short = &r.fingerprint[..8.min(r.fingerprint.len())];
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>plan {short}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
    );
    head(&mut out, account, note);
    tiles(&mut out, &counted_in(t, r), account.certificate.as_ref());
    who(&mut out, t);
    if let (Some(c), Some(rehearsal)) = (&account.certificate, &account.rehearsal) {
        simulated(&mut out, c, rehearsal);
    }
    counted(&mut out, t);
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

fn head(out: &mut String, account: &Account, note: Option<&str>) {
    let r = &account.report;
    let _ = writeln!(
        out,
        "<h1>{} source ranks to {} destination ranks</h1>",
        grouped(r.source_ranks.into()),
        grouped(r.destination_ranks.into())
    );
    let _ = writeln!(
        out,
        "<p class=\"quiet\">plan {} · {} tensors · {} destination copies · strategy {}</p>",
        r.fingerprint,
        grouped(r.tensors),
        grouped(r.destination_copies.into()),
        r.strategy.name()
    );
    let hint = account
        .certificate
        .as_ref()
        .and_then(|c| c.placement_hint.as_ref());
    let notes = [
        note.map(str::to_string),
        hint.map(|h| format!("Placement: {}.", h.text)),
    ];
    for note in notes.iter().flatten() {
        let _ = writeln!(out, "<p class=\"quiet\">{}</p>", escape(note));
    }
}

/// The report; where its totals are of some ranks, with those of the traffic,
/// which counts more.
fn counted_in(t: &Traffic, r: &PlanReport) -> PlanReport {
    if r.is_exact {
        return r.clone();
    }
    let sum = |of: fn(&RankLoad) -> u64| t.ranks.iter().map(of).sum::<u64>();
    let most = |of: fn(&RankLoad) -> u64| t.ranks.iter().map(of).max().unwrap_or(0);
    let senders = sum(|l| u64::from(l.sent_bytes > 0));
    PlanReport {
        bytes_moved: sum(|l| l.sent_bytes),
        bytes_local: sum(|l| l.local_bytes),
        pairs: t.pair_count,
        messages: t.steps.iter().map(|s| s.messages).sum(),
        peers_max: most(|l| l.peers.into()),
        sent_bytes_max: most(|l| l.sent_bytes),
        sent_bytes_mean: sum(|l| l.sent_bytes) / senders.max(1),
        staging_bytes_peak: most(|l| l.staging_bytes),
        ..r.clone()
    }
}

fn tiles(out: &mut String, r: &PlanReport, c: Option<&Certificate>) {
    let ratio = r.sent_bytes_max as f64 / r.sent_bytes_mean.max(1) as f64;
    let mut tiles = Vec::new();
    if let Some(c) = c {
        let bound = format!("predicted; no plan beats {}", time(c.lower_bound_ns));
        tiles.push((time(c.predicted_ns), bound));
        let over = "predicted over the bound".to_string();
        tiles.push((format!("{:.3}", c.ratio), over));
    }
    tiles.extend([
        (bytes(r.bytes_moved), "sent".to_string()),
        (bytes(r.bytes_local), "copied locally".to_string()),
        (grouped(r.steps.into()), "steps".to_string()),
        (
            grouped(r.pairs),
            format!("pairs, at most {} peers a rank", r.peers_max),
        ),
        (
            grouped(r.messages),
            match r.is_exact {
                true => format!("messages, {} without staging", grouped(r.messages_direct)),
                false => "messages".to_string(),
            },
        ),
        (
            bytes(r.staging_bytes_peak),
            format!("staging at most, {} allowed", bytes(r.staging_bytes_max)),
        ),
        (
            format!("{ratio:.2}"),
            "busiest sender over the mean".to_string(),
        ),
    ]);
    out.push_str("<div class=\"tiles\">\n");
    for (number, what) in &tiles {
        let _ = writeln!(
            out,
            "<div class=\"tile\"><b>{number}</b><span>{what}</span></div>"
        );
    }
    out.push_str("</div>\n");
}

/// The matrix, with the largest pairs beside it.
fn who(out: &mut String, t: &Traffic) {
    let name = |from: u32, to: u32| format!("{from} → {to}");
    let pairs = t.pairs.iter().map(|p| (name(p.from, p.to), p.bytes));
    let parts = [
        "<div class=\"beside\">\n<div>\n".to_string(),
        matrix::draw(&t.matrix),
        matrix::legend(&t.matrix),
        format!(
            "</div>\n<div>\n<h3>Largest of {} pairs of ranks</h3>\n",
            grouped(t.pair_count)
        ),
        table::parts(pairs, bytes),
        "</div>\n</div>\n".to_string(),
    ];
    let caption = matrix::caption(&t.matrix);
    section(out, "Who sends to whom", &caption, &parts);
}

/// What the simulator says.
fn simulated(out: &mut String, c: &Certificate, rehearsal: &Rehearsal) {
    let (instance, bound_ns) = (&rehearsal.instance, rehearsal.lower_bound_ns);
    let few = match c.is_exact {
        true => String::new(),
        false => format!(
            " Of {} ranks in {} buckets, with the same proportions.",
            grouped(c.ranks_simulated),
            c.buckets_simulated
        ),
    };
    section(
        out,
        "Load per link",
        &format!(
            "How long each link works on its own, busiest first; the dashed line is the time that no \
             plan beats.{few}"
        ),
        &[
            links::draw(&instance.link_loads(), bound_ns),
            "<h3>Busiest links</h3>\n".to_string(),
            links::busiest(c),
        ],
    );
    let timeline = instance.timeline(bound_ns);
    let picture = Picture::of(&timeline, &rehearsal.topology, bound_ns);
    let caption = picture.caption() + &few;
    section(out, "Timeline", &caption, &[picture.draw()]);
}

/// What the programs of ranks add up to.
fn counted(out: &mut String, t: &Traffic) {
    section(
        out,
        "Load of senders",
        "Bytes that each rank sends; the dashed line is the mean of those that send.",
        &[loads::of_ranks(&t.ranks, |l| l.sent_bytes, "sends")],
    );
    section(
        out,
        "Load of receivers",
        "Bytes that each rank receives; the dashed line is the mean of those that receive.",
        &[loads::of_ranks(&t.ranks, |l| l.received_bytes, "receives")],
    );
    section(
        out,
        "Steps",
        "Bytes that all ranks send, step by step.",
        &[loads::of_steps(&t.steps), loads::stages(&t.steps)],
    );
    let tensors = t.tensors.iter().map(|x| (escape(&x.tensor), x.bytes));
    section(
        out,
        "Largest tensors",
        "Bytes that move, copies for several receivers and forwards included.",
        &[table::parts(tensors, bytes)],
    );
}

fn section(out: &mut String, title: &str, says: &str, parts: &[String]) {
    let _ = writeln!(
        out,
        "<section>\n<h2>{title}</h2>\n<p class=\"quiet\">{says}</p>"
    );
    for part in parts {
        out.push_str(part);
    }
    out.push_str("</section>\n");
}

/// The colour of a stage.
fn part_class(i: usize) -> String {
    format!("part{}", i % PART_COUNT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_of_some_ranks_give_way_to_those_of_all() {
        let load = |rank, sent_bytes, received_bytes| RankLoad {
            rank,
            sent_bytes,
            received_bytes,
            peers: 1,
            ..RankLoad::default()
        };
        let traffic = Traffic {
            ranks: vec![load(0, 6, 0), load(1, 2, 0), load(2, 0, 8)],
            pair_count: 2,
            ..Traffic::default()
        };
        let some = PlanReport {
            bytes_moved: 6,
            ..PlanReport::default()
        };
        let all = counted_in(&traffic, &some);
        assert_eq!((all.bytes_moved, all.pairs, all.peers_max), (8, 2, 1));
        assert_eq!((all.sent_bytes_max, all.sent_bytes_mean), (6, 4));
        let exact = PlanReport {
            is_exact: true,
            ..some
        };
        assert_eq!(counted_in(&traffic, &exact).bytes_moved, 6);
    }
}
