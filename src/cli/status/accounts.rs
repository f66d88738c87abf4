//! The section of the status about accounts: how many stand where, and the heaviest of them.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use comfy_table::{Cell, Table};
use serde::Serialize;

use super::super::proof::number;
use super::super::table;
use super::flags::Stages;
use crate::flips::OverrideRow;
use crate::interaction::Stage;
use crate::ledger::{AccountMarks, StageCount};

/// All accounts, and some of them one by one.
pub(super) struct Accounts {
    pub(super) summary: Summary,
    pub(super) lines: Vec<Line>,
    pub(super) more: usize,
}

/// How many accounts there are of each sort.
#[derive(Debug, Default, Serialize)]
pub(super) struct Summary {
    /// That were ever seen.
    accounts: usize,
    /// By the highest stage of their kinds, as new work is pinned; `unknown` where the flags can't be read.
    by_stage: BTreeMap<&'static str, usize>,
    /// Postgres may own their work.
    armed: usize,
    /// They had work without a pin.
    unpinned: usize,
    /// That the flags want in live or complete, and that are not armed yet.
    kept_back: usize,
}

/// An account and kind.
#[derive(Serialize)]
pub(super) struct Line {
    account: String,
    /// `*` where nothing is unended.
    kind: String,
    /// What the flags say; absent where they can't be read.
    flag: Option<Stage>,
    /// What the next interaction is pinned with.
    stage: Option<Stage>,
    /// Unended, by owner.
    temporal: i64,
    postgres: i64,
    armed_at: Option<DateTime<Utc>>,
    /// Why the stage is not what the flags say.
    why: Option<String>,
}

impl Accounts {
    /// Puts accounts, unended work and flags together; keeps the `limit` heaviest lines.
    pub(super) fn of(
        accounts: &[AccountMarks],
        unended: Vec<StageCount>,
        stages: &Stages,
        overrides: &[OverrideRow],
        limit: usize,
    ) -> Self {
        let unended: BTreeMap<_, _> =
            unended.into_iter().map(|c| ((c.account, c.kind), (c.temporal, c.postgres))).collect();
        let mut kinds: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (account, kind) in unended.keys() {
            kinds.entry(account).or_default().insert(kind);
        }
        let (mut summary, mut lines) = (Summary::default(), Vec::new());
        for marks in accounts {
            let everything = BTreeSet::from(["*"]);
            let known = kinds.get(marks.account.as_str()).unwrap_or(&everything);
            let of_it: Vec<_> = known.iter().map(|kind| line(marks, kind, stages, overrides, &unended)).collect();
            summary.add(marks, &of_it);
            lines.extend(of_it);
        }
        lines.sort_by_key(|line| std::cmp::Reverse(line.temporal + line.postgres));
        let more = lines.len().saturating_sub(limit);
        lines.truncate(limit);
        Self { summary, lines, more }
    }
}

impl Summary {
    fn add(&mut self, marks: &AccountMarks, lines: &[Line]) {
        let stage = lines.iter().filter_map(|line| line.stage).max();
        self.accounts += 1;
        *self.by_stage.entry(stage.map_or("unknown", Stage::as_str)).or_default() += 1;
        self.armed += usize::from(marks.state == "armed");
        self.unpinned += usize::from(marks.unpinned_at.is_some());
        self.kept_back += usize::from(lines.iter().any(|line| line.flag > line.stage));
    }

    /// Accounts whose way back leads to Temporal. Where the flags can't be read, those that may be.
    pub(super) fn live(&self) -> usize {
        let of = |stage| self.by_stage.get(stage).copied().unwrap_or_default();
        of(Stage::Live.as_str()) + of("unknown").min(self.armed)
    }

    pub(super) fn show(&self) {
        let order = Stage::ALL.iter().map(|stage| stage.as_str()).chain(["unknown"]);
        let stages: Vec<_> = order.filter_map(|s| Some(format!("{} {s}", self.by_stage.get(s)?))).collect();
        let stages = if stages.is_empty() { "none yet".to_owned() } else { stages.join(", ") };
        let (armed, unpinned, kept_back) = (self.armed, self.unpinned, self.kept_back);
        println!("accounts    {}: {stages}; {armed} armed, {unpinned} with work without a pin", self.accounts);
        if kept_back > 0 {
            println!("            {kept_back} stay in shadow until they are armed, though the flags want more");
        }
    }
}

fn line(
    marks: &AccountMarks,
    kind: &str,
    stages: &Stages,
    overrides: &[OverrideRow],
    unended: &BTreeMap<(String, String), (i64, i64)>,
) -> Line {
    let flag = stages.stage(&marks.account, kind);
    let (stage, why) = match overridden(overrides, &marks.account, kind) {
        None => effective(flag, marks),
        Some(o) => {
            let (stage, why) = effective(Some(o.stage), marks);
            let why = [Some(format!("by an override until {}", o.until_at.format("%F %T"))), why];
            (stage, Some(why.into_iter().flatten().collect::<Vec<_>>().join("; ")))
        }
    };
    let (temporal, postgres) = unended.get(&(marks.account.clone(), kind.to_owned())).copied().unwrap_or_default();
    let (account, kind) = (marks.account.clone(), kind.to_owned());
    Line { account, kind, flag, stage, temporal, postgres, armed_at: marks.armed_at, why }
}

/// The override in force: the kind's own before its account's, as routers take them.
fn overridden<'a>(overrides: &'a [OverrideRow], account: &str, kind: &str) -> Option<&'a OverrideRow> {
    let of = |wanted: Option<&str>| overrides.iter().find(|o| o.account == account && o.kind.as_deref() == wanted);
    of(Some(kind)).or_else(|| of(None))
}

/// Live of an account that is not armed is pinned in shadow.
fn effective(flag: Option<Stage>, marks: &AccountMarks) -> (Option<Stage>, Option<String>) {
    let wants_more = matches!(flag, Some(Stage::Live | Stage::Complete));
    let never_unpinned = marks.state == "open" && marks.unpinned_at.is_none();
    if !wants_more || marks.state == "armed" || never_unpinned {
        return (flag, None);
    }
    let past = marks.unpinned_at.map_or_else(String::new, |since| {
        format!("; work was started without a pin since {}, so it takes a window", since.format("%F %T"))
    });
    (Some(Stage::Shadow), Some(format!("it stays in shadow until it is armed, and is {} now{past}", marks.state)))
}

pub(super) fn rows(lines: &[Line]) -> Table {
    let mut rows = table(&["ACCOUNT", "KIND", "FLAG", "STAGE", "ON TEMPORAL", "ON POSTGRES", "ARMED", "WHY"]);
    let name = |stage: Option<Stage>| stage.map_or("?", Stage::as_str);
    for line in lines {
        rows.add_row([
            Cell::new(&line.account),
            Cell::new(&line.kind),
            Cell::new(name(line.flag)),
            Cell::new(name(line.stage)),
            number(line.temporal as u64),
            number(line.postgres as u64),
            Cell::new(line.armed_at.map_or("-".to_owned(), |at| at.format("%F %T").to_string())),
            Cell::new(line.why.as_deref().unwrap_or_default()),
        ]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(account: &str) -> AccountMarks {
        AccountMarks { account: account.into(), state: "open".into(), unpinned_at: None, armed_at: None }
    }

    #[test]
    fn an_account_that_is_not_armed_stays_in_shadow_and_the_status_says_why() {
        let mut marks = marks("a");
        assert_eq!(effective(Some(Stage::Live), &marks), (Some(Stage::Live), None));
        marks.unpinned_at = Some(DateTime::UNIX_EPOCH);
        let (stage, why) = effective(Some(Stage::Complete), &marks);
        assert_eq!(stage, Some(Stage::Shadow));
        assert!(why.unwrap().contains("1970-01-01"));
        assert_eq!(effective(Some(Stage::Off), &marks), (Some(Stage::Off), None));
    }

    #[test]
    fn an_override_is_the_stage_and_says_so_and_the_kinds_own_comes_first() {
        let over = |kind: Option<&str>, stage| OverrideRow {
            id: 1,
            account: "a".into(),
            kind: kind.map(str::to_owned),
            stage,
            until_at: DateTime::UNIX_EPOCH,
            remaining_ms: 1,
            who: "me".into(),
            why: "test".into(),
        };
        let overrides = [over(None, Stage::Shadow), over(Some("sync"), Stage::Off)];
        let of = |kind: &str| line(&marks("a"), kind, &Stages::Unknown, &overrides, &BTreeMap::new());
        assert_eq!((of("sync").stage, of("other").stage), (Some(Stage::Off), Some(Stage::Shadow)));
        assert!(of("other").why.unwrap().contains("override until 1970-01-01"));
    }

    #[test]
    fn every_account_is_counted_and_the_heaviest_are_shown() {
        let accounts: Vec<_> = (0..100).map(|n| marks(&format!("a{n:03}"))).collect();
        let count = |n: i64| StageCount { account: format!("a{n:03}"), kind: "k".into(), temporal: n, postgres: 0 };
        let shown = Accounts::of(&accounts, (90..100).map(count).collect(), &Stages::Unknown, &[], 3);
        assert_eq!((shown.summary.accounts, shown.more), (100, 97));
        assert_eq!(shown.summary.by_stage, BTreeMap::from([("unknown", 100)]));
        let heaviest: Vec<_> = shown.lines.iter().map(|line| line.temporal).collect();
        assert_eq!(heaviest, [99, 98, 97]);
    }
}
