//! What operators and their tools see of a running cluster: metrics, readiness, status, and the id that finds a request
//! in the logs of every node it passed. Real processes; what is read is what Prometheus and a person would read.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use serde_json::Value;
use strongroom::escrow::ids::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const UNKNOWN_KEY: &str = "00000000-0000-4000-8000-00000000dead";
/// As Prometheus asks.
const OPENMETRICS: &str =
    "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

/// A page of metrics, read strictly.
#[derive(Default)]
struct Scrape {
    /// Type and help of each family.
    families: BTreeMap<String, (String, String)>,
    /// Values by name and labels.
    samples: BTreeMap<(String, BTreeMap<String, String>), f64>,
}

impl Scrape {
    /// Reads the text format of Prometheus. Fails on anything a strict reader would not take.
    fn parse(text: &str) -> Self {
        let mut scrape = Self::default();
        let mut helps = BTreeMap::new();
        for line in text.lines() {
            if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
                assert!(helps.insert(name.to_owned(), help.to_owned()).is_none(), "HELP of {name} twice");
            } else if let Some((name, kind)) =
                line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
            {
                let help = helps.get(name).unwrap_or_else(|| panic!("{name} has no HELP")).clone();
                let before = scrape.families.insert(name.to_owned(), (kind.to_owned(), help));
                assert!(before.is_none(), "TYPE of {name} twice");
            } else {
                assert!(!line.starts_with('#'), "a comment that is no comment of the format: {line}");
                let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
                let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
                let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
                let labels = labels_of(labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}")));
                let before = scrape.samples.insert((name.to_owned(), labels), value);
                assert!(before.is_none(), "twice: {line}");
            }
        }
        scrape
    }

    /// The family a sample belongs to.
    fn family(&self, sample: &str) -> &str {
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
            let name = sample.strip_suffix(suffix)?;
            self.families.get_key_value(name).filter(|(_, (kind, _))| kind == "histogram")
        });
        let family = of_histogram.or_else(|| self.families.get_key_value(sample));
        family.unwrap_or_else(|| panic!("{sample} has no TYPE")).0
    }

    /// The sum of all samples of this name that have these labels.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |of: &BTreeMap<String, String>| {
            labels.iter().all(|(label, value)| of.get(*label).is_some_and(|is| is == value))
        };
        let samples = self.samples.iter().filter(|((of, with), _)| of == name && has(with));
        samples.map(|(_, value)| value).sum()
    }
}

/// Labels as they are written; the values in these tests hold no escapes and no commas but in names of CAs.
fn labels_of(text: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("labels: {text}"));
        let (value, after) = after.split_once('"').unwrap_or_else(|| panic!("labels: {text}"));
        assert!(labels.insert(name.to_owned(), value.to_owned()).is_none(), "label {name} twice: {text}");
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    labels
}

/// What promtool and the naming rules of Prometheus ask for.
fn assert_conforms(scrape: &Scrape) {
    // Every label there may be: none of them is a machine, a user or a key, and each has few values.
    let labels = [
        "action",
        "agreement",
        "cluster",
        "code",
        "le",
        "method",
        "node",
        "origin",
        "outcome",
        "part",
        "peer",
        "port",
        "role",
        "service",
        "subject",
        "version",
        "zone",
    ];
    for (name, (kind, help)) in &scrape.families {
        let charset = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(name.starts_with("strongroom_") && name.chars().all(charset), "{name}");
        assert!(help.ends_with('.') && help.len() > 5, "the help of {name} is a sentence: {help:?}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        if kind == "histogram" {
            assert!(name.ends_with("_seconds"), "{name} is of a base unit");
        }
        for unit in ["milliseconds", "_ms", "minutes", "hours", "kilobytes", "_kib", "_mib", "percent"] {
            assert!(!name.contains(unit), "{name} is not of a base unit");
        }
        for reserved in ["_count", "_sum", "_bucket", "_counter", "_gauge", "_histogram"] {
            assert!(!name.ends_with(reserved), "{name} ends like part of another type");
        }
        assert!(
            scrape.samples.keys().any(|(sample, _)| scrape.family(sample) == name),
            "{name} has no sample"
        );
    }
    for ((sample, with), value) in &scrape.samples {
        let (kind, _) = &scrape.families[scrape.family(sample)];
        assert!(with.keys().all(|label| labels.contains(&label.as_str())), "{sample}: {with:?}");
        assert!(kind == "gauge" || *value >= 0.0, "{sample} is a {kind} of {value}");
        assert!(value.is_finite(), "{sample}: {value}");
    }
    assert_buckets_add_up(scrape);
    assert!(scrape.samples.len() < 2_000, "{} series are too many for one node", scrape.samples.len());
}

fn assert_buckets_add_up(scrape: &Scrape) {
    let mut buckets: BTreeMap<_, Vec<(f64, f64)>> = BTreeMap::new();
    for ((sample, with), value) in &scrape.samples {
        let Some(name) = sample.strip_suffix("_bucket") else { continue };
        let mut with = with.clone();
        let bound = with.remove("le").expect("a bound").replace("+Inf", "inf").parse().expect("a number");
        buckets.entry((name.to_owned(), with)).or_default().push((bound, *value));
    }
    for ((name, with), mut bounds) in buckets {
        bounds.sort_by(|one, other| one.0.total_cmp(&other.0));
        assert!(bounds.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{name} {with:?} shrinks");
        let (last, all) = bounds.last().copied().expect("a bucket");
        assert!(last.is_infinite(), "{name} ends with infinity");
        assert_eq!(scrape.samples[&(format!("{name}_count"), with)], all, "{name}");
    }
}

/// Every expression of the dashboard and of the rules.
fn expressions() -> Vec<String> {
    fn collect(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value {
                        Value::String(text) if name == "expr" || name == "query" => into.push(text.clone()),
                        value => collect(value, into),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| collect(item, into)),
            _ => {}
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/observability");
    let read = |file| std::fs::read_to_string(folder.join(file)).expect("a file of the repository");
    let mut all = Vec::new();
    collect(&serde_json::from_str(&read("grafana-dashboard.json")).expect("JSON"), &mut all);
    assert!(all.len() > 40, "the dashboard has expressions: {}", all.len());
    // YAML, of which only the texts matter; comments and annotations name metrics as well.
    all.extend(read("alerts.yml").lines().map(str::to_owned));
    all
}

/// Metrics named in a text, with the matchers in braces behind them.
fn named(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("strongroom_") {
        let from = &rest[at..];
        let part_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, after) = from.split_at(from.find(|c| !part_of_name(c)).unwrap_or(from.len()));
        let matchers =
            after.strip_prefix('{').and_then(|after| after.split_once('}')).map_or("", |(inside, _)| inside);
        found.push((name.to_owned(), matchers.to_owned()));
        rest = after;
    }
    found
}

/// Every metric and label that the dashboard and the rules name is one that a node has.
fn assert_all_named_exist(scrapes: &[Scrape]) {
    let mut labels: BTreeMap<&str, BTreeSet<(&str, &str)>> = BTreeMap::new();
    for ((name, with), _) in scrapes.iter().flat_map(|scrape| &scrape.samples) {
        labels
            .entry(name)
            .or_default()
            .extend(with.iter().map(|(label, value)| (label.as_str(), value.as_str())));
    }
    let mut checked = 0;
    for (name, matchers) in expressions().iter().flat_map(|text| named(text)) {
        let is_family = scrapes.iter().any(|scrape| scrape.families.contains_key(&name));
        let labels = labels.get(name.as_str());
        assert!(labels.is_some() || is_family, "no node has {name}");
        checked += 1;
        for matcher in matchers.split(',').filter(|matcher| !matcher.starts_with("job=")) {
            let Some((label, value)) = matcher.split_once(['=', '!']) else { continue };
            let has = labels.expect("a metric with matchers has samples");
            assert!(has.iter().any(|(known, _)| *known == label), "{name} has no label {label}");
            // Only an exact match names one value; which codes were answered with is a matter of chance.
            if let Some(value) = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')) {
                assert!(has.contains(&(label, value)), "{name} is never {label}={value}");
            }
        }
    }
    assert!(checked > 80, "{checked} names were checked");
}

/// What is shown beside an expression: a legend, or a rule's summary and description.
struct Shown {
    expression: String,
    text: String,
}

/// Every expression of the dashboard and of the rules that has a text.
fn shown() -> Vec<Shown> {
    fn collect(value: &Value, into: &mut Vec<Shown>) {
        if let (Some(expression), Some(text)) = (value["expr"].as_str(), value["legendFormat"].as_str()) {
            into.push(Shown { expression: expression.to_owned(), text: text.to_owned() });
        }
        let fields = value.as_object().into_iter().flat_map(serde_json::Map::values);
        fields.chain(value.as_array().into_iter().flatten()).for_each(|inner| collect(inner, into));
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/observability");
    let read = |file| std::fs::read_to_string(folder.join(file)).expect("a file of the repository");
    let mut all = Vec::new();
    collect(&serde_json::from_str(&read("grafana-dashboard.json")).expect("JSON"), &mut all);
    let rules = yaml_rust2::YamlLoader::load_from_str(&read("alerts.yml")).expect("YAML");
    for rule in rules[0]["groups"][0]["rules"].as_vec().expect("rules") {
        let annotations = &rule["annotations"];
        let text =
            ["summary", "description"].map(|name| annotations[name].as_str().expect("a text")).join(" ");
        all.push(Shown { expression: rule["expr"].as_str().expect("an expression").to_owned(), text });
    }
    all
}

/// What stands between `open` and `close`, each time.
fn between<'a>(text: &'a str, open: &'a str, close: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(open).skip(1).filter_map(move |rest| Some(rest.split_once(close)?.0))
}

/// Every label that an expression groups or joins by, or that is shown beside it, is on a metric it names, and is left
/// by what it groups.
fn assert_labels_exist(scrapes: &[Scrape]) {
    let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, with) in scrapes.iter().flat_map(|scrape| scrape.samples.keys()) {
        labels.entry(name).or_default().extend(with.keys().map(String::as_str));
    }
    let mut checked = 0;
    for Shown { expression, text } in shown() {
        let listed =
            |keyword| between(&expression, keyword, ")").flat_map(|inside| inside.split(',')).map(str::trim);
        let (by, on): (BTreeSet<_>, BTreeSet<_>) = (listed("by (").collect(), listed("on (").collect());
        let legend = between(&text, "{{", "}}").map(str::trim).filter(|inside| !inside.contains('$'));
        let annotated = between(&text, "$labels.", " }}").map(str::trim);
        let in_text: BTreeSet<_> = legend.chain(annotated).collect();
        let names: Vec<_> = named(&expression).into_iter().map(|(name, _)| name).collect();
        for label in by.iter().chain(&on).chain(&in_text) {
            // What Prometheus gives every sample of a scrape.
            let of_scrape = ["instance", "job"].contains(label);
            let has = |name: &String| labels.get(name.as_str()).is_some_and(|has| has.contains(label));
            assert!(of_scrape || names.iter().any(has), "no metric of {expression} has label {label}");
            checked += 1;
        }
        for label in &in_text {
            assert!(by.is_empty() || by.contains(label), "{expression} leaves no label {label} for {text:?}");
        }
    }
    assert!(checked > 60, "{checked} labels were checked");
}

/// The rules' thresholds for what expires are those of logs, `status` and `--check`.
#[test]
fn alerts_call_a_certificate_urgent_when_the_nodes_do() {
    use strongroom::tls;

    const DAY: u64 = 86_400;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/observability/alerts.yml");
    let text = std::fs::read_to_string(path).expect("the rules");
    let rules = yaml_rust2::YamlLoader::load_from_str(&text).expect("YAML");
    let rules = rules[0]["groups"][0]["rules"].as_vec().expect("rules");
    let (soon, urgent) = (tls::EXPIRY_WARNING_SHARE, tls::EXPIRY_URGENT_SHARE);
    for (alert, metric, severity, left, share) in [
        ("CertificateExpiring", "certificate", "warning", tls::EXPIRY_WARNING, soon),
        ("CertificateExpiringNow", "certificate", "critical", tls::EXPIRY_URGENT, urgent),
        ("CaExpiring", "ca_certificate", "warning", tls::AUTHORITY_EXPIRY_WARNING, soon),
        ("CaExpiringNow", "ca_certificate", "critical", tls::AUTHORITY_EXPIRY_URGENT, urgent),
    ] {
        let named = format!("Strongroom{alert}");
        let rule = rules.iter().find(|rule| rule["alert"].as_str() == Some(&named));
        let rule = rule.unwrap_or_else(|| panic!("no alert {named}"));
        let of = |what| format!("strongroom_{metric}_{what}_timestamp_seconds{{job=\"strongroom\"}}");
        let (until, from, days) = (of("expiry"), of("not_before"), left.as_secs() / DAY);
        let expected = format!("{until} - time() < clamp_max(({until} - {from}) / {share}, {days} * {DAY})");
        assert_eq!(rule["expr"].as_str(), Some(expected.as_str()), "{named}");
        assert_eq!(rule["labels"]["severity"].as_str(), Some(severity), "{named}");
    }
}

/// Runs promtool if it is installed; says so if it is not.
fn promtool(arguments: &[&str], input: &str) {
    let started = Command::new("promtool")
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return eprintln!("SKIPPED: promtool {} (promtool is not installed)", arguments.join(" "));
        }
        Err(error) => panic!("promtool: {error}"),
    };
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("promtool reads");
    let output = child.wait_with_output().expect("promtool ends");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {}:\n{said}", arguments.join(" "));
}

/// Escrows and reveals of every outcome that a caller can bring about, each by a known number.
async fn traffic(test: &TestCluster) {
    for (n, node) in (1..).zip(ALL) {
        test.client("importer", &[node]).escrow(&deposit(n)).await.expect("kept");
    }
    assert!(test.client("importer", &[1]).escrow(&deposit(1)).await.expect("kept").already_escrowed);
    let mut other = deposit(4);
    (other.key_id, other.machine) = (deposit(1).key_id, deposit(1).machine);
    test.client("importer", &[1]).escrow(&other).await.expect_err("another secret under the same id");
    test.client("auditor", &[1]).escrow(&deposit(5)).await.expect_err("an auditor may not");
    let key = deposit(1).key_id.expect("given");
    test.client("helpdesk-advanced", &[1]).recover(key, "locked out", None).await.expect("shown");
    test.client("helpdesk", &[1]).recover(key, "locked out", None).await.expect_err("names no user");
    let unknown = UNKNOWN_KEY.parse().expect("a key id");
    test.client("helpdesk-advanced", &[1])
        .recover(unknown, "locked out", None)
        .await
        .expect_err("no such key");
}

/// Somebody who speaks no TLS.
async fn knock_without_tls(test: &TestCluster, node: NodeId) {
    let api = test.cluster.layout().node(node).expect("a node").api_address();
    let mut stream = TcpStream::connect(api).await.expect("connected");
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    // An alert or a reset: either way it is over.
    let _ = stream.read_to_end(&mut answer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_conform_count_what_happened_and_are_all_that_dashboards_and_alerts_name() {
    let test = three_nodes().await;
    traffic(&test).await;
    knock_without_tls(&test, 1).await;
    test.cluster.wait_settled(&ALL).await.expect("settled");
    let mut scrapes = Vec::new();
    for node in ALL {
        let complete = |_, body: &str| {
            body.contains("\nstrongroom_disk_free_bytes ")
                && body.contains("\nstrongroom_quorum_age_seconds ")
                && (node != 1 || body.contains("tls_handshake_failures_total{port=\"api\"} 1"))
                // The leader counts an entry as lacking until it has heard that it is there.
                && Scrape::parse(body).sum("strongroom_peer_lag_entries", &[]) == 0.0
        };
        let body = test.wait_for_page(node, "/metrics", complete).await;
        let scrape = Scrape::parse(&body);
        assert_conforms(&scrape);
        promtool(&["check", "metrics"], &body);
        for secret in ["PC-0000", "user1", "CORP", &deposit(1).key_id.expect("given").to_string()] {
            assert!(!body.contains(secret), "{secret} is nobody's business here");
        }
        scrapes.push(scrape);
    }
    assert_all_named_exist(&scrapes);
    assert_labels_exist(&scrapes);
    promtool(&["check", "rules", "cluster/observability/alerts.yml"], "");

    let one = &scrapes[0];
    for (outcome, times) in [("kept", 1.0), ("already_kept", 1.0), ("conflict", 1.0), ("denied", 1.0)] {
        assert_eq!(one.sum("strongroom_escrows_total", &[("outcome", outcome)]), times, "{outcome}");
    }
    for (outcome, times) in [("granted", 1.0), ("denied", 1.0), ("not_found", 1.0)] {
        assert_eq!(one.sum("strongroom_reveals_total", &[("outcome", outcome)]), times, "{outcome}");
    }
    let answered = |method, code| one.sum("strongroom_requests_total", &[("method", method), ("code", code)]);
    assert_eq!(answered("Escrow", "OK"), 2.0);
    assert_eq!(answered("Escrow", "ALREADY_EXISTS"), 1.0);
    assert_eq!(answered("Escrow", "PERMISSION_DENIED"), 1.0);
    assert_eq!(answered("Recover", "OK"), 1.0);
    assert_eq!(one.sum("strongroom_request_duration_seconds_count", &[("method", "Recover")]), 3.0);
    assert!(one.sum("strongroom_proposals_total", &[("outcome", "committed")]) >= 4.0);

    let all = |name, labels| scrapes.iter().map(|scrape| scrape.sum(name, labels)).sum::<f64>();
    assert_eq!(all("strongroom_raft_is_leader", &[]), 1.0, "one leads");
    assert_eq!(all("strongroom_peer_lag_entries", &[]), 0.0, "nobody lags once all is settled");
    assert!(all("strongroom_commit_duration_seconds_count", &[]) >= 7.0, "the leader times what it commits");
    for scrape in &scrapes {
        assert!(scrape.sum("strongroom_applied_entries_total", &[]) >= 8.0);
        assert!(scrape.sum("strongroom_log_flush_duration_seconds_count", &[]) >= 8.0);
        assert!(scrape.sum("strongroom_log_appended_bytes_total", &[]) > 0.0);
        assert_eq!(scrape.sum("strongroom_raft_role", &[]), 1.0, "one role");
        assert_eq!(scrape.sum("strongroom_state_agreement", &[]), 1.0, "one verdict");
        assert_eq!(scrape.sum("strongroom_ready", &[]), 1.0);
        assert!(scrape.sum("strongroom_audit_sequence", &[]) > 0.0);
        let certificate = scrape.sum("strongroom_certificate_expiry_timestamp_seconds", &[]);
        assert!(certificate > scrape.sum("strongroom_start_time_seconds", &[]));
        assert!(scrape.sum("strongroom_ca_certificate_expiry_timestamp_seconds", &[]) >= certificate);
    }

    let (code, open) = try_page(&test.admin(1), "/metrics", OPENMETRICS).await.expect("answered");
    assert_eq!(code, 200);
    assert!(open.ends_with("# EOF\n") && open.contains("# TYPE strongroom_escrows counter\n"), "OpenMetrics");
}

/// The lines of a node's log that belong to a request.
fn logged(test: &TestCluster, node: NodeId, request_id: &str) -> Vec<Value> {
    let lines = test.log_lines(node).into_iter();
    lines.filter(|line| line["span"]["request_id"] == request_id).collect()
}

async fn wait_logged(test: &TestCluster, node: NodeId, request_id: &str, message: &str) {
    let deadline = Instant::now() + SOON;
    while !logged(test, node, request_id).iter().any(|line| line["message"] == message) {
        assert!(Instant::now() < deadline, "node {node} never logged {message:?} for request {request_id}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_found_in_the_logs_of_every_node_it_passed_by_the_id_its_caller_was_told() {
    let test = three_nodes().await;
    let leader = test.leader().await;
    let follower = ALL.into_iter().find(|id| *id != leader).expect("three nodes");
    let recover = ["recover", UNKNOWN_KEY, "--reason", "locked out"];
    let (code, error) = failure(&test.strongroom("helpdesk-advanced", &[follower], &recover));
    assert_eq!(code, 3, "{error}");
    let id = error["request_id"].as_str().expect("the caller is told the id").to_owned();
    wait_logged(&test, follower, &id, "refused").await;
    wait_logged(&test, leader, &id, "committed for another node").await;
    for node in [leader, follower] {
        let lines = logged(&test, node, &id);
        assert!(lines.iter().all(|line| line["span"]["method"].is_string()), "{lines:?}");
    }
    let bystander = ALL.into_iter().find(|id| ![leader, follower].contains(id)).expect("three nodes");
    assert!(logged(&test, bystander, &id).is_empty(), "it had no part in it");

    // A second one has another id, and a person is told it too.
    let layout = test.cluster.layout();
    let mut command = Command::new(program());
    command
        .args(recover)
        .env("STRONGROOM_ENDPOINTS", layout.node(follower).expect("a node").api_address())
        .env("STRONGROOM_PROFILE", layout.profile("helpdesk-advanced"));
    let output = run(command, "");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let other = told.lines().find_map(|line| line.strip_prefix("request id: ")).expect("told").to_owned();
    assert_ne!(other, id);
    wait_logged(&test, leader, &other, "committed for another node").await;

    // A refusal at the door, which no other node hears of.
    let denied = test.strongroom("auditor", &[follower], &["approval", "list"]);
    let (code, error) = failure(&denied);
    assert_eq!(code, 4, "{error}");
    let id = error["request_id"].as_str().expect("told");
    wait_logged(&test, follower, id, "denied").await;
    assert!(logged(&test, leader, id).is_empty());
}

/// Status as JSON; it must succeed whatever it says.
fn status(test: &TestCluster, asked: NodeId) -> Value {
    let output = test.strongroom("operator", &[asked], &["status"]);
    assert!(output.status.success(), "status succeeds: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Waits until the status is as it should be.
async fn wait_status(test: &TestCluster, asked: NodeId, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + SOON;
    loop {
        let status = status(test, asked);
        if holds(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "{what}: {status:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What needs attention, but for the disk of the machine that runs this test.
fn warnings(status: &Value) -> Vec<String> {
    let all = status["warnings"].as_array().expect("warnings").iter();
    let all = all.map(|warning| warning.as_str().expect("a sentence").to_owned());
    all.filter(|warning| !warning.starts_with("the disk of node")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_readiness_say_what_is_wrong_while_nodes_go_away_and_come_back() {
    let mut test = three_nodes().await;
    let leader = test.leader().await;
    let followers: Vec<_> = ALL.into_iter().filter(|id| *id != leader).collect();
    let well = wait_status(&test, leader, "all is well", |status| {
        let measured = |node: &Value| node["disk_free_bytes"].is_u64();
        warnings(status).is_empty() && status["nodes"].as_array().expect("nodes").iter().all(measured)
    });
    let well = well.await;
    let disks_are_well = well["warnings"].as_array().is_some_and(Vec::is_empty);
    assert_eq!(well["health"], if disks_are_well { "healthy" } else { "degraded" });
    assert!(well["feature_level"].is_u64());
    for node in well["nodes"].as_array().expect("nodes") {
        assert!(node["last_contact_ms"].as_u64().expect("known") < 30_000, "{node}");
        assert!(node["disk_used_bytes"].as_u64().expect("known") > 0, "{node}");
        assert!(node["overlay_max_bytes"].as_u64().expect("known") > 0, "{node}");
        assert_eq!((&node["quarantine"], &node["draining"]), (&Value::Null, &Value::Bool(false)));
    }
    for node in ALL {
        assert_eq!(test.wait_for_page(node, "/readyz", |code, _| code == 200).await, "ready\n");
    }

    test.cluster.kill(followers[0]).await.expect("killed");
    let away = format!("voter {} is away: last heard from", followers[0]);
    let degraded = wait_status(&test, leader, "a voter away degrades", |status| {
        status["health"] == "degraded" && warnings(status).iter().any(|warning| warning.starts_with(&away))
    });
    let degraded = degraded.await;
    let gone = degraded["nodes"].as_array().expect("nodes").iter().find(|node| node["id"] == followers[0]);
    assert!(gone.expect("shown")["last_contact_ms"].is_u64(), "it was heard from before");
    assert_eq!(test.page(leader, "/readyz").await.0, 200, "two of three serve");
    let table = Command::new(program())
        .arg("status")
        .env("STRONGROOM_ENDPOINTS", test.cluster.layout().node(leader).expect("a node").api_address())
        .env("STRONGROOM_PROFILE", test.cluster.layout().profile("operator"))
        .output()
        .expect("runs");
    let table = String::from_utf8(table.stdout).expect("text");
    assert!(table.contains("degraded: 1 of 3 voters away, tolerates no more"), "{table}");
    assert!(table.contains(&format!("warning: {away}")), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 80), "80 columns:\n{table}");

    // It is said, but not at each of the attempts to reach it.
    let log = std::fs::read_to_string(test.cluster.layout().node(leader).expect("a node").log_path());
    let log = log.expect("its log");
    let said = log.lines().filter(|line| line.contains("Connection refused")).count();
    assert!((1..20).contains(&said), "said {said} times:\n{log}");

    test.cluster.kill(followers[1]).await.expect("killed");
    wait_status(&test, leader, "one of three has no quorum", |status| status["health"] == "no-quorum").await;
    let why = test.wait_for_page(leader, "/readyz", |code, _| code == 503).await;
    assert!(why.contains("knows no leader"), "{why}");
    assert_eq!(test.page(leader, "/livez").await.0, 200, "it is alive all the same");

    for node in followers {
        test.cluster.start(node).await.expect("comes back");
    }
    wait_status(&test, leader, "all is well again", |status| warnings(status).is_empty()).await;
    test.wait_for_page(leader, "/readyz", |code, _| code == 200).await;
}
