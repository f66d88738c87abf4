//! The section of the status about who decides beside the flags' source: the routers, and overrides.

use crate::flips::{OverrideRow, RouterRow, SILENT_AFTER};

/// More routers than so many are counted, not named.
const SHOWN: usize = 10;

/// Overrides first: while one is in force, the flags don't say where its account stands.
pub(super) fn show(overrides: &[OverrideRow], routers: &[RouterRow]) {
    for o in overrides {
        let kind = o.kind.as_ref().map_or_else(String::new, |kind| format!(", kind {kind},"));
        let until = o.until_at.format("%F %T UTC");
        println!("OVERRIDE    {}{kind} is in {} until {until}, whatever the flags say: {} ({})", o.account, o.stage, o.why, o.who);
    }
    let silent = routers.iter().filter(|router| router.silent_seconds > SILENT_AFTER.as_secs_f64()).count();
    println!("routers     {} registered, {silent} silent", routers.len());
    for router in routers.iter().take(SHOWN) {
        println!("            {}", line(router));
    }
    if routers.len() > SHOWN {
        println!("            … and {} more: crossover routers", routers.len() - SHOWN);
    }
}

fn line(router: &RouterRow) -> String {
    let RouterRow { name, revision, silent_seconds, flags_age_seconds, .. } = router;
    let silent = match *silent_seconds > SILENT_AFTER.as_secs_f64() {
        true => format!("; SILENT for {silent_seconds:.0} s"),
        false => String::new(),
    };
    match router.decides() {
        true => format!("{name} decides by {revision}, confirmed by its source {flags_age_seconds:.0} s ago{silent}"),
        false => format!("{name} runs work of Temporal and decides nothing{silent}"),
    }
}
