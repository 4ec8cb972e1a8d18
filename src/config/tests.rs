use std::collections::BTreeSet;

use super::*;

const MINIMAL: &str = r#"
    cluster = "acme"
    node_id = 1
    data_dir = "/var/lib/strongroom"
    [advertise]
    api = "one.acme.example:7420"
    peer = "one.acme.example:7421"
    [tls]
    ca = "tls/ca.crt"
    cert = "/etc/pki/node.crt"
    key = "tls/node.key"
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/etc/strongroom"))
}

/// The fields at fault, with what was said of them.
fn problems(text: &str) -> Vec<(String, String)> {
    match parse(text) {
        Err(ConfigError::Invalid(problems)) => problems.into_iter().map(|p| (p.field, p.expected)).collect(),
        other => panic!("expected a refusal of\n{text}\ngot {other:?}"),
    }
}

/// [`MINIMAL`] with `line` put at the head of `section` (of the whole file if empty), in place of the line for the
/// same field if there is one.
fn with(section: &str, line: &str) -> String {
    let mut table: toml::Table = MINIMAL.parse().unwrap();
    let change: toml::Table = line.parse().unwrap();
    let target = match section {
        "" => &mut table,
        section => table.entry(section).or_insert_with(|| toml::Table::new().into()).as_table_mut().unwrap(),
    };
    target.extend(change);
    table.to_string()
}

fn without(section: &str, field: &str) -> String {
    let mut table: toml::Table = MINIMAL.parse().unwrap();
    match section {
        "" => table.remove(field),
        section => table[section].as_table_mut().unwrap().remove(field),
    };
    table.to_string()
}

#[test]
fn what_is_not_said_has_its_documented_default() {
    let config = parse(MINIMAL).unwrap();
    assert_eq!(config.cluster.as_str(), "acme");
    assert_eq!(config.zone, "");
    assert_eq!(config.listen.api, "0.0.0.0:7420".parse().unwrap());
    assert_eq!(config.listen.peer, "0.0.0.0:7421".parse().unwrap());
    assert_eq!(config.listen.admin, "127.0.0.1:7422".parse().unwrap());
    assert_eq!(config.identity.node_key, Path::new("/var/lib/strongroom/node.key"));
    assert_eq!(config.recovery.quorum_timeout(), Duration::from_secs(2));
    assert_eq!(
        config.limits,
        Limits { max_connections: 1_024, max_in_flight: 1_024, drain_timeout_ms: 10_000 }
    );
    assert_eq!(
        config.raft,
        RaftSettings {
            heartbeat_ms: 100,
            election_min_ms: 400,
            election_max_ms: 800,
            snapshot_log_bytes: 67_108_864,
            keep_entries: 5_000,
        }
    );
}

#[test]
fn a_node_supports_what_its_release_does_unless_it_is_held_back() {
    assert_eq!(parse(MINIMAL).unwrap().upgrade.feature_level(), FeatureLevel::SUPPORTED);
    let held = parse(&with("upgrade", "hold_feature_level = 1")).unwrap();
    assert_eq!(held.upgrade.feature_level(), FeatureLevel::FIRST);
}

#[test]
fn relative_paths_are_relative_to_the_directory_of_the_file() {
    let config = parse(&with("", r#"data_dir = "data""#)).unwrap();
    assert_eq!(config.data_dir, Path::new("/etc/strongroom/data"));
    assert_eq!(config.identity.node_key, Path::new("/etc/strongroom/data/node.key"));
    assert_eq!(config.tls.ca, Path::new("/etc/strongroom/tls/ca.crt"));
    assert_eq!(config.tls.cert, Path::new("/etc/pki/node.crt"));
    assert_eq!(config.tls.crl, None);
    let config = parse(&with("identity", r#"node_key = "/run/credentials/node.key""#)).unwrap();
    assert_eq!(config.identity.node_key, Path::new("/run/credentials/node.key"));
    let config = parse(&with("tls", r#"crl = "tls/ca.crl""#)).unwrap();
    assert_eq!(config.tls.crl.as_deref(), Some(Path::new("/etc/strongroom/tls/ca.crl")));
}

#[test]
fn a_node_that_listens_on_one_address_advertises_it() {
    let text = without("", "advertise") + "[listen]\napi = '10.0.0.1:7420'\npeer = '[fd00::1]:7421'";
    let config = parse(&text).unwrap();
    assert_eq!(config.advertise, Advertise { api: "10.0.0.1:7420".into(), peer: "[fd00::1]:7421".into() });
}

#[test]
fn what_is_rendered_reads_back_as_it_was() {
    let all = with("tls", r#"crl = "c.crl""#) + "[raft]\nheartbeat_ms = 50\n[limits]\nmax_in_flight = 7\n";
    for text in [MINIMAL, &all] {
        let config = parse(text).unwrap();
        let rendered = config.render().unwrap();
        assert_eq!(parse(&rendered).unwrap(), config, "{rendered}");
    }
}

#[test]
fn every_refusal_names_its_field_and_what_is_expected() {
    let cases = [
        ("", r#"cluster = "Acme Inc""#, "cluster", "lower-case letters"),
        ("", r#"cluster = """#, "cluster", "required"),
        ("", "cluster = 7", "cluster", "a text in quotes, not 7"),
        ("", "node_id = 0", "node_id", "a whole number from 1"),
        ("", "node_id = -1", "node_id", "a whole number from 1"),
        ("", r#"node_id = "1""#, "node_id", r#"not "1""#),
        ("", "node_id = 1.5", "node_id", "a whole number from 1"),
        ("", r#"data_dir = """#, "data_dir", "not empty"),
        ("", r#"zone = "east wing""#, "zone", "letters, digits, dots, hyphens or underscores"),
        ("", &format!("zone = {:?}", "z".repeat(64)), "zone", "at most 63"),
        ("", "zones = 1", "zones", "no such field"),
        ("", "listen = 7420", "listen", "a section [listen], not 7420"),
        ("listen", r#"api = "localhost:7420""#, "listen.api", "an IP address and a port"),
        ("listen", r#"api = "0.0.0.0""#, "listen.api", "an IP address and a port"),
        ("listen", r#"peer = "0.0.0.0:0""#, "listen.peer", "a port from 1"),
        ("listen", r#"admin = "127.0.0.1:70000""#, "listen.admin", "an IP address and a port"),
        ("listen", "admin = 7422", "listen.admin", "a text in quotes"),
        ("listen", r#"peer = "0.0.0.0:7420""#, "listen.peer", "another port than listen.api"),
        ("listen", r#"peer = "10.0.0.1:7420""#, "listen.peer", "another port than listen.api"),
        ("listen", r#"admin = "127.0.0.1:7421""#, "listen.admin", "another port than listen.peer"),
        ("listen", r#"admin = "[::]:7420""#, "listen.admin", "another port than listen.api"),
        ("listen", r#"portal = "0.0.0.0:443""#, "listen.portal", "no such field"),
        ("advertise", r#"api = """#, "advertise.api", "host:port"),
        ("advertise", r#"api = "one.acme.example""#, "advertise.api", "host:port"),
        ("advertise", r#"api = "one.acme.example:0""#, "advertise.api", "host:port"),
        ("advertise", r#"api = "one.acme.example:+1""#, "advertise.api", "host:port"),
        ("advertise", r#"api = "0.0.0.0:7420""#, "advertise.api", "host:port"),
        ("advertise", r#"api = "[::]:7420""#, "advertise.api", "host:port"),
        ("advertise", r#"api = "fd00::1:7420""#, "advertise.api", "host:port"),
        ("advertise", r#"api = "300.1.1.1:7420""#, "advertise.api", "host:port"),
        ("advertise", r#"api = "-one:7420""#, "advertise.api", "host:port"),
        ("advertise", r#"api = "https://one:7420""#, "advertise.api", "host:port"),
        (
            "advertise",
            r#"peer = "one.acme.example:7420""#,
            "advertise.peer",
            "another address than advertise.api",
        ),
        ("limits", "drain_timeout_ms = 300001", "limits.drain_timeout_ms", "from 0 to 300000"),
        ("tls", r#"ca = """#, "tls.ca", "required"),
        ("tls", r#"crl = """#, "tls.crl", "a path"),
        ("tls", r#"cert_file = "x""#, "tls.cert_file", "no such field"),
        ("identity", "node_key = 1", "identity.node_key", "a text in quotes"),
        ("recovery", "quorum_timeout_ms = 499", "recovery.quorum_timeout_ms", "from 500 to 2400, not 499"),
        ("recovery", "quorum_timeout_ms = 2401", "recovery.quorum_timeout_ms", "from 500 to 2400, not 2401"),
        ("recovery", r#"quorum_timeout_ms = "2s""#, "recovery.quorum_timeout_ms", "a whole number"),
        ("limits", "max_connections = 0", "limits.max_connections", "from 1 to 65536"),
        ("limits", "max_in_flight = 65537", "limits.max_in_flight", "from 1 to 65536"),
        ("lmits", "max_in_flight = 1", "lmits", "no such section"),
        ("raft", "heartbeat_ms = 9", "raft.heartbeat_ms", "from 10 to 10000"),
        (
            "raft",
            "heartbeat_ms = 134",
            "raft.election_min_ms",
            "at least 402 (3 times raft.heartbeat_ms), not 400",
        ),
        (
            "raft",
            "election_max_ms = 400",
            "raft.election_max_ms",
            "more than raft.election_min_ms (400), not 400",
        ),
        ("raft", "election_max_ms = 120001", "raft.election_max_ms", "to 120000"),
        ("raft", "snapshot_log_bytes = 1048575", "raft.snapshot_log_bytes", "from 1048576"),
        ("raft", "keep_entries = true", "raft.keep_entries", "not true"),
        ("upgrade", "hold_feature_level = 0", "upgrade.hold_feature_level", "from 1 to 4, not 0"),
        ("upgrade", "hold_feature_level = 5", "upgrade.hold_feature_level", "from 1 to 4, not 5"),
    ];
    for (section, line, field, expected) in cases {
        let found = problems(&with(section, line));
        assert_eq!(found.len(), 1, "[{section}] {line}: {found:?}");
        assert_eq!(found[0].0, field, "[{section}] {line}: {found:?}");
        assert!(found[0].1.contains(expected), "[{section}] {line}: {found:?}");
    }
}

#[test]
fn what_must_be_said_is_asked_for() {
    for (section, field, named) in [
        ("", "cluster", "cluster"),
        ("", "node_id", "node_id"),
        ("", "data_dir", "data_dir"),
        ("advertise", "api", "advertise.api"),
        ("advertise", "peer", "advertise.peer"),
        ("tls", "ca", "tls.ca"),
        ("tls", "cert", "tls.cert"),
        ("tls", "key", "tls.key"),
    ] {
        let fields: Vec<String> =
            problems(&without(section, field)).into_iter().map(|(field, _)| field).collect();
        assert_eq!(fields, [named]);
    }
}

#[test]
fn everything_that_is_wrong_is_reported_at_once_one_a_line() {
    let text = r#"
        node_id = "one"
        colour = "red"
        [listen]
        api = "nowhere"
        [limits]
        max_connections = 0
        [typo]
    "#;
    let printed = parse(text).unwrap_err().to_string();
    let fields: Vec<&str> = printed.lines().map(|line| line.split(':').next().unwrap()).collect();
    let expected = [
        "cluster",
        "colour",
        "data_dir",
        "limits.max_connections",
        "listen.api",
        "node_id",
        "tls.ca",
        "tls.cert",
        "tls.key",
        "typo",
    ];
    assert_eq!(fields, expected, "{printed}");
}

#[test]
fn a_file_that_is_not_toml_says_where() {
    let refused = parse("cluster = acme\n").unwrap_err();
    assert!(matches!(refused, ConfigError::Syntax(_)), "{refused:?}");
    assert!(refused.to_string().contains("line 1"), "{refused}");
    assert!(matches!(parse("node_id = 1\nnode_id = 2\n").unwrap_err(), ConfigError::Syntax(_)));
}

#[test]
fn a_missing_file_is_said_to_be_missing() {
    let directory = tempfile::tempdir().unwrap();
    let refused = Config::load(&directory.path().join("node.toml")).unwrap_err();
    assert!(matches!(&refused, ConfigError::Read(source) if source.kind() == io::ErrorKind::NotFound));
}

/// [`MINIMAL`] with `environment` and `flags` over it.
fn overridden(environment: &[(&str, &str)], flags: &[&str]) -> Result<Loaded, ConfigError> {
    let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
    Loaded::parse(MINIMAL, Overrides::new(environment, &flags), Path::new("/etc/strongroom"))
}

#[test]
fn flags_go_over_the_environment_and_that_over_the_file() {
    let zone = ("STRONGROOM_NODE__ZONE", "east");
    let node = ("STRONGROOM_NODE__NODE_ID", "7");
    let loaded = overridden(&[zone, node], &["zone=west", "limits.max_in_flight=5", "zone=north"]).unwrap();
    assert_eq!(loaded.config.zone, "north", "the last flag counts");
    assert_eq!(
        (loaded.config.node_id, loaded.source("node_id").to_string()),
        (7, "environment STRONGROOM_NODE__NODE_ID".to_owned())
    );
    assert_eq!(
        (loaded.config.limits.max_in_flight, loaded.source("limits.max_in_flight")),
        (5, Source::Flag)
    );
    assert_eq!(loaded.source("cluster"), Source::File);
    assert_eq!(loaded.source("raft.keep_entries"), Source::Default);
}

#[test]
fn every_field_can_be_set_by_its_variable_and_by_its_flag_as_in_the_file() {
    let config = parse(&with("tls", r#"crl = "crl.pem""#)).unwrap();
    let fields = Loaded { config: config.clone(), sources: BTreeMap::new() }.fields().unwrap();
    assert!(fields.len() > 20, "{fields:?}");
    let said = |value: &toml::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let variables: Vec<(String, String)> =
        fields.iter().map(|(field, value, _)| (variable_of(field), said(value))).collect();
    let flags: Vec<String> =
        fields.iter().map(|(field, value, _)| format!("{field}={}", said(value))).collect();
    let environment = || variables.iter().map(|(name, value)| (name.into(), value.into()));
    for overrides in [Overrides::new(environment(), &[]), Overrides::new([], &flags)] {
        let loaded = Loaded::parse("", overrides, Path::new("/elsewhere")).unwrap();
        assert_eq!(loaded.config, config);
        assert!(fields.iter().all(|(field, ..)| loaded.source(field) > Source::Default));
    }
}

#[test]
fn a_path_of_the_file_is_relative_to_it_and_any_other_to_the_working_directory() {
    let loaded =
        overridden(&[("STRONGROOM_NODE__TLS__CERT", "here/node.crt")], &["tls.crl=crl.pem"]).unwrap();
    assert_eq!(loaded.config.tls.ca, Path::new("/etc/strongroom/tls/ca.crt"));
    assert_eq!(loaded.config.tls.cert, Path::new("here/node.crt"));
    assert_eq!(loaded.config.tls.crl.as_deref(), Some(Path::new("crl.pem")));
}

#[test]
fn what_is_wrong_in_any_layer_is_reported_at_once_and_says_where() {
    let environment = [
        ("STRONGROOM_NODE__LISTEN__API", "nowhere"),
        ("STRONGROOM_NODE__LIMITS__MAX_IN_FLIGHT", "many"),
        ("STRONGROOM_NODE__LISTEN__PORTAL", "0.0.0.0:443"),
        ("STRONGROOM_NODE__zone", "x"),
        ("STRONGROOM_NODE_PORT", "tcp://10.0.0.1:7420"),
        ("STRONGROOM_ZONE", "the client's"),
    ];
    let printed = overridden(&environment, &["node_id=0", "lmits.x=1", "nonsense"]).unwrap_err().to_string();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 7, "{printed}");
    for (line, field, source) in [
        (lines[0], "--set: a field and its value", ""),
        (lines[1], "STRONGROOM_NODE__zone: no such variable", ""),
        (
            lines[2],
            "limits.max_in_flight: a whole number",
            "(environment STRONGROOM_NODE__LIMITS__MAX_IN_FLIGHT)",
        ),
        (lines[3], "listen.api: an IP address", "(environment STRONGROOM_NODE__LISTEN__API)"),
        (lines[4], "listen.portal: no such field", "(environment STRONGROOM_NODE__LISTEN__PORTAL)"),
        (lines[5], "lmits.x: no such field", "(--set)"),
        (lines[6], "node_id: a whole number from 1", "(--set)"),
    ] {
        assert!(line.starts_with(field) && line.ends_with(source), "{line}");
    }
    let in_file = parse(&with("", "zone = 7")).unwrap_err().to_string();
    assert!(in_file.ends_with("(file)"), "{in_file}");
}

#[test]
fn what_looks_like_a_key_where_its_path_belongs_is_refused_and_not_repeated() {
    let secret = "AGE-SECRET-KEY-1QQQQ";
    for printed in [
        overridden(&[], &[&format!("identity.node_key={secret}")]).unwrap_err().to_string(),
        overridden(&[("STRONGROOM_NODE__TLS__KEY", "-----BEGIN PRIVATE KEY-----\nQQQQ\n")], &[])
            .unwrap_err()
            .to_string(),
        parse(&with("tls", &format!("crl = {secret:?}"))).unwrap_err().to_string(),
        overridden(&[], &[secret]).unwrap_err().to_string(),
        parse(&format!("{MINIMAL}\n{secret}")).unwrap_err().to_string(),
    ] {
        assert!(!printed.contains("QQQQ"), "{printed}");
    }
}

#[test]
fn the_example_files_are_nodes_of_one_cluster_each() {
    for (folder, size) in [("three", 3), ("five", 5), ("local", 3)] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster").join(folder);
        let nodes: Vec<Config> =
            (1..=size).map(|n| Config::load(&folder.join(format!("node{n}.toml"))).unwrap()).collect();
        let distinct = |of: fn(&Config) -> String| nodes.iter().map(of).collect::<BTreeSet<_>>().len();
        assert_eq!(distinct(|node| node.cluster.to_string()), 1);
        assert_eq!(distinct(|node| format!("{:?}", node.raft)), 1);
        assert_eq!(distinct(|node| node.advertise.peer.clone()), size);
        for (n, node) in (1..).zip(&nodes) {
            assert_eq!(node.node_id, n);
            assert_eq!(node.tls.ca, folder.join("tls/ca.crt"));
        }
    }
}
