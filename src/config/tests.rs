use super::*;

const EXAMPLE: &str = include_str!("../../crossover.example.toml");

fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigFaults> {
    Config::read(Reader::from_text(text, variables))
}

fn faults(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    load(text, variables).unwrap_err().0.iter().map(ToString::to_string).collect()
}

/// The example with every commented-out key taken in.
fn example_keys() -> Vec<(String, String)> {
    let mut section = String::new();
    let mut keys = Vec::new();
    for line in EXAMPLE.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = format!("{name}.");
        } else if let Some((key, value)) = line.trim_start_matches('#').split_once(" = ")
            && !line.starts_with("# ")
        {
            let default = if line.starts_with('#') { "" } else { value };
            keys.push((format!("{section}{key}"), default.to_owned()));
        }
    }
    keys
}

#[test]
fn the_example_lists_exactly_every_key_with_its_default() {
    load(EXAMPLE, &[]).unwrap();
    let mut known: Vec<_> = Config::keys().into_iter().map(|(key, default)| (key.to_owned(), default)).collect();
    let mut listed = example_keys();
    known.sort();
    listed.sort();
    assert_eq!(listed, known);
}

#[test]
fn what_the_example_comments_out_would_be_accepted() {
    let taken_in: Vec<_> =
        EXAMPLE.lines().map(|l| l.strip_prefix('#').filter(|l| !l.starts_with(' ')).unwrap_or(l)).collect();
    load(&taken_in.join("\n"), &[]).unwrap();
}

#[test]
fn nothing_set_is_the_defaults() {
    let config = load("", &[]).unwrap();
    assert!(config.postgres.url.is_none());
    assert_eq!(config.provision.data_dir, Path::new(".crossover/servers"));
    assert_eq!(config.window.idempotency, Duration::from_secs(86_400));
}

#[test]
fn every_fault_is_reported_at_once_with_its_line() {
    let text = "[worker]\nslots = 0\nleas = \"1s\"\n[http]\nlisten = 7080\n[relay]\npoll = \"often\"";
    assert_eq!(
        faults(text, &[("CROSSOVER_WORKER_SLOT", "3")]),
        [
            "http.listen (line 5): must be a string in quotes, not a bare number",
            "worker.slots (line 2): must be an integer from 1 to 10000, without quotes",
            "relay.poll (line 7): `often` is no duration; write it like \"100ms\"",
            "worker.leas (line 3): is no setting; the nearest one is `worker.lease`",
            "CROSSOVER_WORKER_SLOT (environment): is no setting; the nearest one is `CROSSOVER_WORKER_SLOTS`",
        ]
    );
}

#[test]
fn the_environment_wins_over_the_file() {
    let text = "state_dir = \"a\"\n[worker]\nslots = 1";
    let config = load(text, &[("CROSSOVER_WORKER_SLOTS", "2"), ("CROSSOVER_STATE_DIR", "b")]).unwrap();
    assert_eq!((config.worker.slots, config.state_dir), (2, PathBuf::from("b")));
    assert_eq!(config.provision.data_dir, Path::new("b/servers"));
}

#[test]
fn a_broken_file_says_where_and_repeats_nothing_of_it() {
    let text = faults("[postgres]\nurl = \"postgres://u:hunter2@h/d\n", &[]).join("\n");
    assert!(text.starts_with("crossover.toml (line 2): isn't TOML: "), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn a_password_is_never_printed() {
    let url = "postgres://u:hunter2@h:5432/d?password=hunter3";
    let config = load("", &[("CROSSOVER_POSTGRES_URL", url)]).unwrap();
    assert_eq!(config.postgres.url.as_ref().unwrap().expose(), url);
    let shown = format!("{config:?} {}", config.postgres.url.as_ref().unwrap());
    assert!(!shown.contains("hunter"), "{shown}");
    let wrong = faults("", &[("CROSSOVER_POSTGRES_URL", "mysql://u:hunter2@h/d")]).join("");
    assert!(wrong.contains("postgres.url") && !wrong.contains("hunter"), "{wrong}");
}

#[test]
fn a_named_file_that_is_missing_is_a_fault() {
    let faults = Config::load(Some(Path::new("no/such/file.toml"))).unwrap_err().to_string();
    assert!(faults.contains("no/such/file.toml: can't be read"), "{faults}");
}

#[test]
fn a_section_given_as_a_value_is_a_fault() {
    assert_eq!(faults("worker = 3", &[]), ["worker (line 1): is no setting; the nearest one is `worker.poll`"]);
}

#[test]
fn callers_who_wait_leave_room_for_others() {
    let found = faults("[http]\nmax_requests = 100\nmax_waiters = 100", &[]).join("\n");
    assert!(found.contains("http.max_waiters") && found.contains("http.max_requests"), "{found}");
    load("[http]\nmax_requests = 100\nmax_waiters = 99", &[]).unwrap();
}

#[test]
fn a_disk_that_is_too_old_whenever_postgres_is_slow_is_a_fault() {
    let text = faults("[postgres]\nconnect_timeout = \"5s\"\n[router]\ndisk_valid = \"5s\"", &[]).join("");
    assert!(text.contains("router.disk_valid") && text.contains("postgres.connect_timeout"), "{text}");
}

#[test]
fn a_poll_slower_than_the_lease_is_a_fault() {
    let text = faults("[worker]\nlease = \"1s\"\npoll = \"2s\"", &[]).join("");
    assert!(text.contains("worker.poll") && text.contains("worker.lease"), "{text}");
}

#[test]
fn an_address_that_others_reach_needs_tokens() {
    let text = faults("[http]\nlisten = \"0.0.0.0:7080\"", &[]).join("");
    assert!(text.starts_with("http.listen: ") && text.contains("crossover token new"), "{text}");
    let text = "[http]\nlisten = \"0.0.0.0:7080\"\ntokens_file = \"tokens.example.toml\"";
    assert_eq!(load(text, &[]).unwrap().http.tokens, Some(Vec::new()), "nobody is let in");
    let text = faults("[http]\ntokens_file = \"no/such/file\"", &[]).join("");
    assert!(text.contains("http.tokens_file") && text.contains("crossover token new"), "{text}");
}

#[test]
fn following_unleash_needs_its_address_and_a_token_for_its_environment() {
    let text = faults("[flags]\nsource = \"unleash\"", &[]).join("\n");
    assert!(text.contains("flags.url: is needed") && text.contains("flags.token: is needed"), "{text}");
    let file = "[flags]\nsource = \"unleash\"\nurl = \"http://u\"\naccept_missing = \"crossover-kill, crossover-life\"";
    let text = faults(file, &[("CROSSOVER_FLAGS_TOKEN", "default:production.hunter2")]).join("\n");
    assert!(text.contains("flags.token: is for another environment"), "{text}");
    assert!(text.contains("`crossover-life` is not one of crossover-shadow"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    let config = load("", &[("CROSSOVER_FLAGS_TOKEN", "*:development.hunter2")]).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn a_kind_has_tolerances_and_rules_of_its_own() {
    let text = "[comparator.kinds.sync]\nlate = \"30s\"\nignore = [\"/sent_at\"]\nclean = [[\"[0-9]+\", \"N\"]]\n[comparator.kinds.\"a.b\"]\n";
    let config = load(text, &[]).unwrap();
    let sync = &config.comparator.kinds["sync"];
    assert_eq!((sync.late, sync.early), (Some(Duration::from_secs(30)), None));
    assert_eq!((&sync.ignore[..], sync.clean[0].1.as_str()), (&["/sent_at".to_owned()][..], "N"));
    assert!(config.comparator.kinds.contains_key("a.b"));
}

#[test]
fn every_fault_of_every_kind_is_reported_at_once() {
    let text = "[comparator.kinds.a]\nlate = 5\nlat = \"5s\"\n[comparator.kinds.b]\nignore = [\"sent_at\"]\nclean = [[\"(\", \"\"]]\n[comparator.kinds]\nc = 1";
    let faults = faults(text, &[]).join("\n");
    for fault in [
        "comparator.kinds.a.late (line 2): must be a string in quotes",
        "comparator.kinds.a.lat (line 3): is no setting; one of late, early",
        "comparator.kinds.b.ignore (line 5): `sent_at` is no JSON pointer",
        "comparator.kinds.b.clean (line 6): `(` is no regular expression",
        "comparator.kinds.c (line 8): must be a table",
    ] {
        assert!(faults.contains(fault), "{fault} is missing in {faults}");
    }
    assert!(self::faults("", &[("CROSSOVER_COMPARATOR_KINDS", "x")]).join("").contains("must be a table of kinds"));
}

#[test]
fn a_share_is_a_plain_number_in_its_range() {
    let config = load("[latency]\nquantile = 0.99", &[("CROSSOVER_LATENCY_CONFIDENCE", "0.999")]).unwrap();
    assert_eq!((config.latency.quantile, config.latency.confidence), (0.99, 0.999));
    assert_eq!(
        faults("[latency]\nquantile = \"0.9\"\nconfidence = 1\nburst = 1.5", &[]),
        [
            "latency.quantile (line 2): must be a number from 0.5 to 0.999, without quotes",
            "latency.confidence (line 3): must be a number from 0.5 to 0.9999, without quotes",
            "latency.burst (line 4): must be an integer from 1 to 10000, without quotes",
        ]
    );
    assert_eq!(faults("", &[("CROSSOVER_LATENCY_QUANTILE", "NaN")]).len(), 1);
}

#[test]
fn a_retention_is_read_by_kind_and_none_is_shorter_than_the_window() {
    let text = "[retention]\nended = \"7days\"\nkinds = { webhook = \"2days\", audit = \"1year\" }";
    let config = load(text, &[]).unwrap();
    assert_eq!(config.retention.ended, Duration::from_secs(7 * 86_400));
    assert_eq!(config.retention.kinds["webhook"], Duration::from_secs(2 * 86_400));
    let text = "[retention.kinds]\nshort = \"1h\"\nodd = \"soon\"\nbare = 5\n[window]\nidempotency = \"24h\"";
    let found = faults(text, &[]);
    for wanted in [
        "retention.kinds.odd (line 3): `soon` is no duration",
        "retention.kinds.bare (line 4): must be a string in quotes",
        "retention.kinds.short: must be at least window.idempotency",
    ] {
        assert!(found.iter().any(|fault| fault.starts_with(wanted)), "{wanted}: {found:?}");
    }
}
