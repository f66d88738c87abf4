//! The views: their columns are those of docs/sql.md, and their rows tell the truth.

use std::path::Path;

use serde_json::{Value, json};
use sqlx::Row;

use super::ledger;

/// The views that this page documents.
const VIEWS: [&str; 4] = ["interactions", "queue_depth", "divergences", "stages"];

/// The columns of a view as docs/sql.md lists them: name and type.
fn documented(view: &str) -> Vec<(String, String)> {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/sql.md")).unwrap();
    let heading = format!("\n## crossover.{view}\n");
    let (_, section) = page.split_once(&heading).unwrap_or_else(|| panic!("docs/sql.md has no section {view}"));
    let section = section.split("\n## ").next().unwrap();
    let cells = section.lines().filter_map(|line| {
        let cells: Vec<_> = line.strip_prefix("| `")?.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        Some((cells[0].to_owned(), cells[1].to_owned()))
    });
    cells.collect()
}

#[tokio::test]
async fn the_views_have_the_columns_that_are_documented() {
    let ledger = ledger().await;
    for view in VIEWS {
        let rows = sqlx::query(
            "select column_name::text as name, data_type::text as type from information_schema.columns
             where table_schema = 'crossover' and table_name = $1 order by ordinal_position",
        );
        let rows = rows.bind(view).fetch_all(ledger.pool()).await.unwrap();
        let found: Vec<(String, String)> = rows
            .iter()
            .map(|row| {
                let kind: String = row.get("type");
                (row.get("name"), kind.replace("timestamp with time zone", "timestamptz"))
            })
            .collect();
        assert_eq!(found, documented(view), "{view}: mend docs/sql.md, or the view if others rely on it");
    }
}

#[tokio::test]
async fn every_divergence_is_a_row_with_its_own_detail() {
    let ledger = ledger().await;
    let divergences = json!([
        { "class": "late", "side": "postgres", "detail": "2 s late" },
        { "class": "attempts", "side": null, "detail": "2 against 1" },
    ]);
    sqlx::query(
        "insert into crossover.observations (id, pinned_at, run_at, judged_at, epoch, account, kind, stage, owner, verdict, classes, divergences)
         select gen_random_uuid(), now(), now(), now(), 1, 'a', 'sync', 'shadow', 'temporal', v.verdict, v.classes, $1::json
         from (values ('diverged', array['late', 'attempts']), ('matched', '{}'::text[])) as v (verdict, classes)",
    )
    .bind(divergences.to_string())
    .execute(ledger.pool())
    .await
    .unwrap();
    let rows: Vec<(String, Option<String>, Option<String>)> =
        sqlx::query_as("select class, side, detail from crossover.divergences order by class")
            .fetch_all(ledger.pool())
            .await
            .unwrap();
    let row = |class: &str, side: Option<&str>, detail: &str| {
        (class.to_owned(), side.map(str::to_owned), Some(detail.to_owned()))
    };
    assert_eq!(rows, [row("attempts", None, "2 against 1"), row("late", Some("postgres"), "2 s late")]);
}

#[tokio::test]
async fn the_depth_counts_each_place_by_group() {
    let ledger = ledger().await;
    sqlx::query(
        "with r as (insert into crossover.ready (id, due_at, attempt, rank, execute, grp)
            values (gen_random_uuid(), now() - interval '1 minute', 1, 0, true, 'g'), (gen_random_uuid(), now(), 1, 0, false, 'g')),
         u as (insert into crossover.running (id, lease_until, due_at, started_at, epoch, attempt, rank, execute, worker, grp)
            values (gen_random_uuid(), now(), now(), now(), 1, 1, 0, true, gen_random_uuid(), 'h'))
         insert into crossover.scheduled (id, due_at, attempt, rank, execute, grp) values (gen_random_uuid(), now(), 1, 0, true, 'g')",
    )
    .execute(ledger.pool())
    .await
    .unwrap();
    let rows: Vec<Value> = sqlx::query_scalar(
        "select json_build_array(grp, ready, scheduled, running, rehearsals, oldest_seconds >= 60) from crossover.queue_depth order by grp",
    )
    .fetch_all(ledger.pool())
    .await
    .unwrap();
    assert_eq!(rows, [json!(["g", 2, 1, 0, 1, true]), json!(["h", 0, 0, 1, 0, false])]);
}
