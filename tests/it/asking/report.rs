//! `crossover report`.

use chrono::Utc;
use crossover::comparator::latency::{Pair, Timing, storage};
use crossover::config::Config;
use crossover::interaction::Stage;
use serde_json::{Value, json};

use super::{Asked, id};

/// As many pairs as make the latency test sure, both sides alike.
async fn alike(asked: &Asked, account: &str, stage: Stage) {
    let timing = Timing { start: 0.010, queueing: 0.005, run: 0.100 };
    let pair = Pair {
        account: account.into(),
        kind: "sync".into(),
        stage,
        day: Utc::now().date_naive(),
        temporal: timing,
        postgres: timing,
    };
    let mut tx = asked.ledger.pool().begin().await.unwrap();
    storage::add(&mut tx, &vec![pair; 5_000], &Config::defaults().latency).await.unwrap();
    tx.commit().await.unwrap();
}

fn line<'a>(report: &'a Value, account: &str) -> &'a Value {
    let lines = report["lines"].as_array().unwrap();
    lines.iter().find(|line| line["account"] == account).unwrap_or_else(|| panic!("{account}: {report}"))
}

#[tokio::test]
async fn without_data_nothing_is_known_and_a_pipeline_can_refuse_that() {
    let asked = Asked::new().await;
    let (report, code) = asked.json(&["report"]).await;
    assert_eq!((&report["lines"], &report["comparator"], code), (&json!([]), &Value::Null, 0));
    assert_eq!(asked.json(&["report", "--fail-on", "fail"]).await.1, 0);
    assert_eq!(asked.json(&["report", "--fail-on", "inconclusive"]).await.1, 3);
    assert!(asked.text(&["report"]).await.contains("nothing is known"));
}

#[tokio::test]
async fn enough_matched_pairs_with_latencies_alike_pass_and_one_divergence_fails() {
    let asked = Asked::new().await;
    asked.comparator().await;
    for (account, n) in [("good", 200), ("bad", 300)] {
        asked.pins(account, "shadow", n).await;
        alike(&asked, account, Stage::Shadow).await;
    }
    asked.judged("good", (1, 200), "matched", &[]).await;
    asked.judged("bad", (1, 295), "matched", &[]).await;
    asked.judged("bad", (296, 300), "diverged", &["late", "attempts"]).await;
    let (report, code) = asked.json(&["report", "--fail-on", "inconclusive"]).await;
    assert_eq!(code, 3);
    let (good, bad) = (line(&report, "good"), line(&report, "bad"));
    assert_eq!((&good["verdict"], &good["why"], &good["coverage"]), (&json!("pass"), &json!([]), &json!(1.0)));
    assert_eq!((&bad["verdict"], &bad["why"]), (&json!("fail"), &json!(["5 of 300 judged diverged"])));
    assert_eq!(report["lines"][0]["account"], "bad", "the heaviest is first");
    let found = &bad["divergences"];
    assert_eq!((found.as_array().unwrap().len(), &found[0]["count"]), (2, &json!(5)));
    let newest = [300, 299, 298].map(|n| id("bad", &format!("k{n}")));
    assert_eq!(found[0]["examples"], json!(newest));
    assert_eq!(found[0]["next"], format!("crossover why {}", newest[0]));
    let start = good["latency"]["postgres"]["start"]["p50"].as_f64().unwrap();
    assert!((9.5..10.5).contains(&start), "{start} ms");
    let total = &report["total"];
    assert_eq!(
        (&total["pinned"], &total["judged"], &total["classes"]),
        (&json!(500), &json!(500), &json!({ "late": 5, "attempts": 5 }))
    );
    assert_eq!((&total["pass"], &total["fail"], &total["inconclusive"]), (&json!(1), &json!(1), &json!(0)));
    assert_eq!(asked.json(&["report", "--account", "good", "--fail-on", "inconclusive"]).await.1, 0);

    let text = asked.text(&["report"]).await;
    assert!(!text.contains('\u{1b}'), "colours without a terminal");
    for word in ["TOTAL", "100.0 %", "crossover why", "bad/sync shadow: fail: 5 of 300 judged diverged"] {
        assert!(text.contains(word), "{word} is not in:\n{text}");
    }
    let limited = asked.text(&["report", "--limit", "1"]).await;
    assert!(limited.contains("… and 1 more") && limited.contains("500"), "{limited}");
}

#[tokio::test]
async fn what_is_not_known_is_no_pass() {
    let asked = Asked::new().await;
    for account in ["few", "uncovered", "restarted", "stuck"] {
        asked.pins(account, "live", if account == "few" { 99 } else { 200 }).await;
        alike(&asked, account, Stage::Live).await;
    }
    asked.judged("few", (1, 99), "matched", &[]).await;
    asked.judged("uncovered", (1, 150), "matched", &[]).await;
    asked.judged("restarted", (1, 199), "matched", &[]).await;
    asked.judged("restarted", (200, 200), "incomplete", &[]).await;
    asked.judged("stuck", (1, 199), "matched", &[]).await;
    asked.judged("stuck", (200, 200), "in_flight", &[]).await;
    asked.sql("update crossover.observations set pinned_at = now() - interval '1 hour', run_at = now() - interval '1 hour'
        where verdict = 'in_flight'").await;
    let (report, _) = asked.json(&["report"]).await;
    for line in report["lines"].as_array().unwrap() {
        assert_eq!((&line["verdict"], &line["why"][0]), (&json!("inconclusive"), &json!("no comparator has ever run")));
    }
    asked.comparator().await;
    let (report, _) = asked.json(&["report"]).await;
    for (account, why) in [
        ("few", "99 judged, 100 are needed"),
        ("uncovered", "75.0 % judged, 95 % are needed"),
        ("restarted", "1 seen with holes: something was restarted or lost"),
        ("stuck", "1 in flight for over 10m"),
    ] {
        let line = line(&report, account);
        assert_eq!((&line["verdict"], &line["why"]), (&json!("inconclusive"), &json!([why])), "{account}");
    }
    asked.sql("update crossover.comparators set pins_until = now() - interval '5 minutes'").await;
    let (report, _) = asked.json(&["report", "--account", "restarted"]).await;
    assert!(report["lines"][0]["why"][0].as_str().unwrap().contains("s behind"), "{report}");
}

#[tokio::test]
async fn the_period_the_stage_and_the_kind_narrow_it_and_one_side_alone_is_not_compared() {
    let asked = Asked::new().await;
    asked.comparator().await;
    asked.pins("old", "shadow", 3).await;
    asked.sql("update crossover.pins set created_at = now() - interval '2 days'").await;
    asked.pins("new", "live", 2).await;
    asked.pins("done", "complete", 5).await;
    let (report, _) = asked.json(&["report"]).await;
    assert_eq!((report["lines"].as_array().unwrap().len(), &report["one_sided"]), (1, &json!(5)));
    assert_eq!(line(&report, "new")["pinned"], 2);
    let (report, _) = asked.json(&["report", "--since", "3days"]).await;
    assert_eq!(report["lines"].as_array().unwrap().len(), 2);
    let (report, _) = asked.json(&["report", "--since", "3days", "--stage", "shadow", "--kind", "sync"]).await;
    assert_eq!((report["lines"].as_array().unwrap().len(), &line(&report, "old")["pinned"]), (1, &json!(3)));
    let (report, _) = asked.json(&["report", "--kind", "other"]).await;
    assert_eq!(report["lines"], json!([]));
}
