//! `drophammer capacity` and `drophammer audit`: what there is of machines, and who changed it.

use anyhow::Result;

use crate::output::{self, Format};
use crate::server::Server;

/// How many machines of which size are free, where.
#[derive(Debug, clap::Args)]
pub(crate) struct CapacityArgs {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    shown: output::Shown,
}

/// Who changed what, oldest first.
#[derive(Debug, clap::Args)]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    shown: output::Shown,
}

pub(crate) fn capacity(args: &CapacityArgs) -> Result<()> {
    let all = args.server.connect()?.capacity()?;
    if args.shown.format() == Format::Json {
        return output::json(&all);
    }
    let rows: Vec<_> = all
        .iter()
        .map(|c| {
            [
                c.partition.clone(),
                c.size.clone().unwrap_or_else(|| "(none)".into()),
                c.total.to_string(),
                c.free.to_string(),
                c.allocated.to_string(),
                format!("{} ({} used)", c.reserved, c.used_reservations),
                c.unavailable.to_string(),
                c.quarantined.to_string(),
                c.faulty.to_string(),
            ]
        })
        .collect();
    output::table(
        ["PARTITION", "SIZE", "TOTAL", "FREE", "ALLOCATED", "RESERVED", "ON THEIR WAY", "QUARANTINED", "FAULTY"],
        &rows,
    )
}

pub(crate) fn audit(args: &AuditArgs) -> Result<()> {
    let entries = args.server.connect()?.audit()?;
    if args.shown.format() == Format::Json {
        return output::json(&entries);
    }
    let wide = args.shown.format() == Format::Wide;
    let rows: Vec<_> = entries
        .iter()
        .map(|entry| {
            let what = if wide { format!("{} -> {}", entry.before, entry.after) } else { String::new() };
            [output::moment(entry.at_ms), entry.who.clone(), entry.action.clone(), entry.object.clone(), what]
        })
        .collect();
    output::table(["WHEN", "WHO", "DID", "WITH", if wide { "BEFORE AND AFTER" } else { "" }], &rows)
}
