//! Nango's story as data: who the cohorts are, and which flag is turned when.

use std::sync::Arc;

use crate::flags::{Document, DocumentBuilder, Fault};
use crate::interaction::Stage;

/// Accounts that move together.
pub struct Cohort {
    /// What they are called.
    pub name: &'static str,
    /// Who they are.
    pub accounts: Vec<Arc<str>>,
    /// Where they stand.
    pub stage: Stage,
    /// One kind that is live before the others.
    pub live_kind: Option<&'static str>,
}

/// One turn of the flags.
pub struct Step {
    /// At this share of the load.
    pub at: f64,
    /// What it is, for a person.
    pub what: &'static str,
    /// Which cohorts, and what becomes of them.
    pub moves: &'static [(&'static str, Stage, Option<&'static str>)],
}

/// The cohort that is rolled back, and when it enqueues a lot at once.
pub const ROLLED_BACK: &str = "production pilot";
pub const BURST_AT: f64 = 0.46;

use Stage::{Complete, Live, Shadow};

/// The cohort that begins in `off`, so that its accounts have work without a pin and are armed the long way.
pub const FROM_OFF: &str = "from off";

/// In the order of the migration. The step after the burst comes while it is in flight.
pub const STEPS: [Step; 8] = [
    Step { at: 0.10, what: "internal goes live", moves: &[("internal", Live, None)] },
    Step { at: 0.14, what: "the cohort in off goes to shadow, where its window begins", moves: &[(FROM_OFF, Shadow, None)] },
    Step { at: 0.22, what: "test-only: webhooks go live", moves: &[("test-only", Shadow, Some("webhook"))] },
    Step { at: 0.34, what: "the production pilot goes live", moves: &[(ROLLED_BACK, Live, None)] },
    Step { at: BURST_AT, what: "the pilot is rolled back, its work in flight", moves: &[(ROLLED_BACK, Shadow, None)] },
    Step { at: 0.58, what: "the cohort that was off is to go live, and is armed first", moves: &[(FROM_OFF, Live, None)] },
    Step {
        at: 0.66,
        what: "everybody who may goes live",
        moves: &[("test-only", Live, None), (ROLLED_BACK, Live, None), ("everybody", Live, None)],
    },
    Step {
        at: 0.84,
        what: "internal and test-only are complete",
        moves: &[("internal", Complete, None), ("test-only", Complete, None)],
    },
];

/// Deals `accounts` out to the cohorts. All stand in shadow but the last, which begins in off.
pub fn cohorts(accounts: usize) -> Vec<Cohort> {
    let part = |share: f64| ((accounts as f64 * share).round() as usize).max(1);
    let sizes = [("internal", part(0.05)), ("test-only", part(0.1)), (ROLLED_BACK, part(0.15)), (FROM_OFF, part(0.1))];
    let rest = accounts.saturating_sub(sizes.iter().map(|(_, size)| size).sum()).max(1);
    let mut next = 0;
    let mut deal = |(name, size): (&'static str, usize)| {
        let accounts = (next..next + size).map(|n| format!("acct-{n:03}").into()).collect();
        next += size;
        let stage = if name == FROM_OFF { Stage::Off } else { Shadow };
        Cohort { name, accounts, stage, live_kind: None }
    };
    let mut cohorts: Vec<Cohort> = sizes[..3].iter().copied().map(&mut deal).collect();
    cohorts.push(deal(("everybody", rest)));
    cohorts.push(deal(sizes[3]));
    cohorts
}

impl Step {
    /// Moves the cohorts.
    pub fn take(&self, cohorts: &mut [Cohort]) {
        for (name, stage, live_kind) in self.moves {
            for cohort in cohorts.iter_mut().filter(|cohort| cohort.name == *name) {
                (cohort.stage, cohort.live_kind) = (*stage, *live_kind);
            }
        }
    }
}

/// The flags that put everybody where they stand. A live account keeps its shadow flag, so that turning one flag off is
/// the whole way back.
pub fn flags(cohorts: &[Cohort]) -> Result<Document, Vec<Fault>> {
    let mut builder = DocumentBuilder::default();
    for cohort in cohorts {
        for account in &cohort.accounts {
            let up_to = Stage::ALL.iter().filter(|stage| **stage <= cohort.stage);
            up_to.for_each(|stage| _ = builder.account(*stage, account));
            if let Some(kind) = cohort.live_kind {
                builder.kind(Live, account, kind);
            }
        }
    }
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_account_is_dealt_out_once_and_every_step_moves_somebody() {
        for accounts in [8, 40, 100] {
            let mut dealt = cohorts(accounts);
            assert_eq!(dealt.iter().map(|cohort| cohort.accounts.len()).sum::<usize>(), accounts);
            for step in &STEPS {
                let before = flags(&dealt).unwrap().revision().to_owned();
                step.take(&mut dealt);
                assert_ne!(flags(&dealt).unwrap().revision(), before, "{}", step.what);
            }
        }
    }

    #[test]
    fn one_kind_goes_live_before_the_others_and_the_off_cohort_goes_all_the_way() {
        let mut dealt = cohorts(40);
        STEPS[..3].iter().for_each(|step| step.take(&mut dealt));
        let (test, off) = (dealt[1].accounts[0].clone(), dealt[4].accounts[0].clone());
        let document = flags(&dealt).unwrap();
        assert_eq!((document.stage(&test, "webhook"), document.stage(&test, "sync")), (Live, Shadow));
        assert_eq!(document.stage(&off, "sync"), Shadow);
        STEPS[3..].iter().for_each(|step| step.take(&mut dealt));
        let document = flags(&dealt).unwrap();
        assert_eq!((document.stage(&test, "sync"), document.stage(&off, "sync")), (Complete, Live));
    }
}
