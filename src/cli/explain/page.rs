//! One plan as one page: no script, no file beside it.

use super::chart;
use crate::account::Account;
use crate::table::{bytes, grouped, time};
use std::fmt::Write;
use weightsync::plan::report::PlanReport;
use weightsync::plan::traffic::Traffic;
use weightsync::sim::Certificate;

const STYLE: &str = "
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #0f172a; background: #f8fafc; margin: 0; }
main { max-width: 1104px; margin: 0 auto; padding: 28px 32px 64px; }
h1 { font-size: 26px; margin: 0 0 2px; }
h2 { font-size: 17px; margin: 0 0 2px; }
.quiet { color: #64748b; margin: 0 0 12px; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0; }
.tile { background: #fff; border: 1px solid #e2e8f0; border-radius: 10px; padding: 10px 16px; min-width: 132px; }
.tile b { display: block; font-size: 21px; font-weight: 650; }
.tile span { color: #64748b; font-size: 13px; }
section { background: #fff; border: 1px solid #e2e8f0; border-radius: 10px; padding: 18px 22px; margin: 16px 0; overflow-x: auto; }
svg { display: block; max-width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: #475569; }
svg rect:hover { stroke: #0f172a; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td { padding: 3px 12px 3px 0; white-space: nowrap; }
td.bar { width: 45%; }
td.bar { position: relative; }
td.bar u { position: absolute; top: 0; bottom: 0; border-left: 1px dashed #dc2626; }
td.bar i { display: block; height: 11px; background: #3b82f6; border-radius: 2px; }
";

/// The page.
pub fn draw(account: &Account, t: &Traffic, note: Option<&str>) -> String {
    let r = &account.report;
    let mut out = String::new();
    let short = &r.fingerprint[..8.min(r.fingerprint.len())];
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>plan {short}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
    );
    head(&mut out, r, note);
    tiles(&mut out, r, account.certificate.as_ref());
    section(
        &mut out,
        "Who sends to whom",
        "Rows send, columns receive; darker is more.",
        &[chart::matrix(&t.matrix), chart::legend(&t.matrix)],
    );
    if let Some(c) = &account.certificate {
        section(
            &mut out,
            "Links against the bound",
            "How long the busiest link of each kind works; the dashed line is the time that no plan beats.",
            &[links(c)],
        );
    }
    section(
        &mut out,
        "Load of senders",
        "Bytes that each rank sends; the dashed line is the mean of those that send.",
        &[chart::loads(&t.ranks, |l| l.sent_bytes, "sends")],
    );
    section(
        &mut out,
        "Load of receivers",
        "Bytes that each rank receives; the dashed line is the mean of those that receive.",
        &[chart::loads(&t.ranks, |l| l.received_bytes, "receives")],
    );
    section(
        &mut out,
        "Steps",
        "Bytes that all ranks send, step by step.",
        &[chart::steps(&t.steps), chart::stages(&t.steps)],
    );
    let tensors = t.tensors.iter().map(|x| (x.tensor.clone(), x.bytes));
    section(
        &mut out,
        "Largest tensors",
        "Bytes that move, copies for several receivers and forwards included.",
        &[bars(tensors)],
    );
    let pairs = t
        .pairs
        .iter()
        .map(|p| (format!("{} → {}", p.from, p.to), p.bytes));
    let count = format!("The first of {} pairs.", grouped(t.pair_count));
    section(&mut out, "Largest pairs", &count, &[bars(pairs)]);
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

fn head(out: &mut String, r: &PlanReport, note: Option<&str>) {
    let _ = writeln!(
        out,
        "<h1>{} source ranks to {} destination ranks</h1>",
        grouped(r.source_ranks.into()),
        grouped(r.destination_ranks.into())
    );
    let _ = writeln!(
        out,
        "<p class=\"quiet\">plan {} · {} tensors · {} destination copies</p>",
        r.fingerprint,
        grouped(r.tensors),
        grouped(r.destination_copies.into())
    );
    if let Some(note) = note {
        let _ = writeln!(out, "<p class=\"quiet\">{note}</p>");
    }
}

fn tiles(out: &mut String, r: &PlanReport, c: Option<&Certificate>) {
    let ratio = r.sent_bytes_max as f64 / r.sent_bytes_mean.max(1) as f64;
    let mut tiles = vec![
        (bytes(r.bytes_moved), "sent".to_string()),
        (bytes(r.bytes_local), "copied locally".to_string()),
        (grouped(r.steps.into()), "steps".to_string()),
        (
            grouped(r.pairs),
            format!("pairs, at most {} peers a rank", r.peers_max),
        ),
        (
            grouped(r.messages),
            format!("messages, {} without staging", grouped(r.messages_direct)),
        ),
        (
            bytes(r.staging_bytes_peak),
            format!("staging at most, {} allowed", bytes(r.staging_bytes_max)),
        ),
        (
            format!("{ratio:.2}"),
            "busiest sender over the mean".to_string(),
        ),
    ];
    if let Some(c) = c {
        let bound = format!("predicted; no plan beats {}", time(c.lower_bound_ns));
        tiles.insert(0, (time(c.predicted_ns), bound));
        tiles.insert(
            1,
            (
                format!("{:.3}", c.ratio),
                "predicted over the bound".to_string(),
            ),
        );
    }
    out.push_str("<div class=\"tiles\">\n");
    for (number, what) in &tiles {
        let _ = writeln!(
            out,
            "<div class=\"tile\"><b>{number}</b><span>{what}</span></div>"
        );
    }
    out.push_str("</div>\n");
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

/// Each kind of link: how many, what they carry, how long the busiest works.
fn links(c: &Certificate) -> String {
    let end = c.predicted_s.max(c.lower_bound_s);
    let part = |s: f64| if end > 0.0 { 100.0 * s / end } else { 0.0 };
    let mut out = String::from("<table class=\"links\">\n");
    for l in &c.links {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{} links</td><td>{}</td><td>busiest {}</td><td class=\"bar\">\
             <i style=\"width:{:.1}%\"></i><u style=\"left:{:.1}%\"></u></td></tr>",
            l.kind.name(),
            grouped(l.count),
            bytes(l.bytes),
            time((l.time_max_s * 1e9) as u64),
            part(l.time_max_s),
            part(c.lower_bound_s)
        );
    }
    out.push_str("</table>\n");
    out
}

/// Names with their bytes and a bar.
fn bars(rows: impl Iterator<Item = (String, u64)>) -> String {
    let rows: Vec<(String, u64)> = rows.collect();
    let most = rows.iter().map(|r| r.1).max().unwrap_or(0).max(1);
    let mut out = String::from("<table>\n");
    for (name, amount) in &rows {
        let width = 100.0 * *amount as f64 / most as f64;
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"bar\"><i style=\"width:{width:.1}%\"></i></td></tr>",
            escape(name),
            bytes(*amount)
        );
    }
    out.push_str("</table>\n");
    out
}

/// Text as it may stand in a page.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
