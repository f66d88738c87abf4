//! Guards of the protocol taken out by hand, one at a time, to see that somebody notices. What is taken out is text of the
//! function of the schema that holds the guard, as it stands after all migrations; `docs/named-failures.md` lists them.
//!
//! For each guard there is a test that this program runs once more, as a child for which the guard is missing: it has to fail.
//! `chaos` runs without some of them as well.

use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::PgPool;

/// Names the guard that is missing in every [`World`](crate::bridge::world::World) of this process.
const MISSING: &str = "CROSSOVER_TEST_WITHOUT";
/// A failing test may have waited for what never came.
const PATIENCE: Duration = Duration::from_secs(180);

/// A function, a text of it, and what stands there without the guard.
type Cut = (&'static str, &'static str, &'static str);

/// A child starts servers of its own, so there is one at a time.
static ONE_CHILD: Mutex<()> = Mutex::new(());

/// A rule of `docs/protocol.md`, and how it is taken out.
pub struct Guard {
    pub name: &'static str,
    /// Which text of which function has to become which.
    cuts: &'static [Cut],
    /// The test that stages what the guard stops.
    staged_by: &'static str,
}

pub const FINISH_IS_FENCED: Guard = Guard {
    name: "FinishIsFenced",
    cuts: &[("finish", "where r.id = f.id and r.attempt = f.attempt and r.worker = p_worker", "where r.id = f.id")],
    staged_by: "fences::late::a_late_result_that_comes_while_another_worker_runs_the_work_ends_nothing",
};

pub const ONLY_THE_HEAD_IS_PLACED: Guard = Guard {
    name: "OnlyTheHeadIsPlaced",
    cuts: &[("pin", "if pin.on_postgres and (v_no is null or v_no = v_head) then", "if pin.on_postgres then")],
    staged_by: "handover::races::an_end_under_way_places_the_next_member_before_a_handover_moves_it",
};

const BEHIND_WAITS: Guard = Guard {
    name: "BehindWaits",
    cuts: &[("pin", "p.series_no >= v_head and p.series_no < v_no", "false")],
    staged_by: "bridge::chain::a_member_waits_for_the_first_even_where_all_that_it_was_told_of_were_cancelled",
};

const BARRIER_WAITS_FOR_SILENT: Guard = Guard {
    name: "BarrierWaitsForSilent",
    cuts: &[("all_acknowledged", "where r.ended_at is null and not exists", "where false and not exists")],
    staged_by: "arming::steps::an_acknowledgement_of_an_earlier_state_is_worth_nothing",
};

const HANDOVER_ONLY_UNCLAIMED: Guard = Guard {
    name: "HandoverOnlyUnclaimed",
    cuts: &[
        ("hand_over", "when v_pin.attempts > 0 then 'claimed'", ""),
        ("to_rehearsal", "attempt > 1 then return 'claimed'", "attempt > 1000 then return 'claimed'"),
    ],
    staged_by: "handover::moves::what_was_ever_claimed_is_cancelled_in_conflict_or_ended_stays",
};

const ALL: &[&Guard] =
    &[&FINISH_IS_FENCED, &ONLY_THE_HEAD_IS_PLACED, &BEHIND_WAITS, &BARRIER_WAITS_FOR_SILENT, &HANDOVER_ONLY_UNCLAIMED];

/// Takes out of a migrated database what this process is to do without.
pub async fn take_out_what_is_missing(pool: &PgPool) {
    let Ok(name) = std::env::var(MISSING) else { return };
    Guard::named(&name).unwrap_or_else(|| panic!("{MISSING}={name} is no guard")).take_out(pool).await;
}

impl Guard {
    /// The guard of this name.
    pub fn named(name: &str) -> Option<&'static Guard> {
        ALL.iter().copied().find(|guard| guard.name == name)
    }

    /// Rewrites the guard's functions without it.
    pub async fn take_out(&self, pool: &PgPool) {
        for (function, with, without) in self.cuts {
            let find = "select pg_get_functiondef(oid) from pg_proc
                where pronamespace = 'crossover'::regnamespace and proname = $1 and position($2 in prosrc) > 0";
            let found: Vec<String> = sqlx::query_scalar(find).bind(function).bind(with).fetch_all(pool).await.unwrap();
            let [found] = found.as_slice() else {
                panic!("{} can't be taken out: {} functions {function} have it", self.name, found.len())
            };
            let orders = sqlx::AssertSqlSafe(found.replace(with, without));
            sqlx::raw_sql(orders).execute(pool).await.unwrap();
        }
        println!("{} is taken out", self.name);
    }

    /// Runs the test that stages what the guard stops, without the guard; it has to fail.
    fn is_missed(&self) {
        let _turn = ONE_CHILD.lock().unwrap_or_else(PoisonError::into_inner);
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args([self.staged_by, "--exact", "--nocapture"]).env(MISSING, self.name);
        let said = tempfile::tempfile().unwrap();
        child.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said.try_clone().unwrap());
        let mut child = child.spawn().unwrap();
        let began = Instant::now();
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None if began.elapsed() > PATIENCE => {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    panic!("without {} {} does not end", self.name, self.staged_by);
                }
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        let said = read(said);
        assert!(said.contains(&format!("{} is taken out", self.name)), "{said}");
        assert!(!status.success() && said.contains("0 passed; 1 failed"), "without {} it passes: {said}", self.name);
        assert!(!said.contains("can't be taken out"), "{said}");
        println!("without {} it fails after {:.1?}", self.name, began.elapsed());
    }
}

fn read(mut file: std::fs::File) -> String {
    use std::io::{Read, Seek};
    let mut said = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut said).unwrap();
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn without_the_fence_of_a_finish_a_late_result_ends_what_another_runs() {
    FINISH_IS_FENCED.is_missed();
}

#[test]
fn without_the_rule_of_the_head_a_member_has_a_place_before_its_turn() {
    ONLY_THE_HEAD_IS_PLACED.is_missed();
}

#[test]
fn without_a_behind_temporal_runs_beside_postgres() {
    BEHIND_WAITS.is_missed();
}

#[test]
fn without_the_wait_for_the_silent_an_account_moves_on_too_early() {
    BARRIER_WAITS_FOR_SILENT.is_missed();
}

#[test]
fn without_the_look_at_attempts_what_was_claimed_is_handed_over() {
    HANDOVER_ONLY_UNCLAIMED.is_missed();
}
