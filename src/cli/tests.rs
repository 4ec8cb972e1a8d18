use super::*;

fn parse(line: &str) -> Result<Cli, String> {
    let words = std::iter::once("strongroom").chain(line.split_whitespace());
    Cli::try_parse_from(words).map_err(|error| usage_message(&error))
}

#[test]
fn the_flags_are_consistent() {
    command().debug_assert();
}

#[test]
fn every_command_of_the_contract_parses() {
    let id = "b0b1c2d3-0000-4000-8000-000000000001";
    for line in [
        "demo",
        "demo --keep",
        "dev --dir D",
        "dev --dir D --nodes 5 --base-port 7420",
        "cert ca --dir ca --cluster acme",
        "init --config F --offline-recipient age1x",
        "init --config F --offline-identity-out O",
        "server --config F",
        "server --config F --check --set listen.api=0.0.0.0:7420 --set zone=east",
        "init --config F --offline-recipient age1x --set zone=east",
        "health",
        "health --admin 127.0.0.1:7432 --wait 60",
        r"escrow --machine M --volume C: --kind generic --user CORP\user1 --secret-file F",
        &format!(
            "escrow --machine M --volume C: --kind luks-recovery --key-id {id} --package-file P --receipt-out R"
        ),
        "find --key-id b0b1c2d3",
        "find --machine M --consistency quorum --min-index 7 --limit 1000",
        r"find --user CORP\user1",
        &format!("recover {id} --reason x"),
        &format!("recover {{{id}}} --reason x --user CORP\\user1"),
        &format!("custody {id}"),
        "receipt verify F",
        "receipt verify F --ca ca.crt",
        "status",
        "--endpoints a:1,b:2 --profile P --output json --timeout 5 status",
        "status --endpoints a:1,b:2 --profile P --output json --timeout 5 --zone west",
        "compliance put F",
        "compliance put - --many",
        "compliance get M --as-of 2026-01-31 --consistency quorum --min-index 7",
        "compliance schema",
        "compliance exempt request M --reason x --until 2030-01-31",
        "compliance exempt grant M --until 2030-01-31T12:00:00Z",
        &format!("compliance exempt reject M {id}"),
        "compliance exempt revoke M",
        "compliance exempt list --waiting --limit 5",
        "compliance policy show",
        "compliance policy set F --replaces 2",
        "report enterprise",
        "report enterprise --details --status non-compliant,unknown --sort last_contact --descending --format csv",
        "report computer M --as-of 2026-01-31",
        "report recovery-audit --since 2026-01-01 --until 2026-02-01 --actor desk1 --machine PC-*",
        r"report findings --finding recovery-key-missing --domain CORP --user CORP\user1 --after M --limit 9",
        "report stale --days 60 --format json --at 2026-01-31 --min-index 7",
        "member list",
        "member add host:7421 --learner --dry-run",
        "member add host:7421 --any-voter-count",
        "member promote 4 --dry-run",
        "member demote 4 --any-voter-count",
        "member remove 4 --dry-run --any-voter-count",
        "member replace 3 host:7421 --dry-run",
        "member replace 3 4",
        "member transfer",
        "member transfer 2 --dry-run",
        "keyring status",
        "keyring rotate",
        "keyring open --data D --identity F",
        "keyring open --data D --identity F --key-id b0b1c2d3 --machine M",
        "keyring open --data D --identity F --export E",
        "bench escrow --clients 64 --seconds 10 --output json",
        &format!("bench recover --key-id {id} --clients 2"),
        "completions bash",
        "man",
    ] {
        assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err());
    }
}

#[test]
fn bad_arguments_are_refused_by_the_name_of_the_field() {
    for (line, named) in [
        ("escrow --volume C: --kind generic", "--machine"),
        ("escrow --machine a/b --volume C: --kind generic", "machine: 1 to"),
        ("escrow --machine M --volume C: --kind nonsense", "kind: one of"),
        ("escrow --machine M --volume C: --kind generic --key-id 12", "key_id: a UUID"),
        ("escrow --machine M --volume C: --kind generic --user user1", r"user: DOMAIN\NAME"),
        ("find", "--key-id <PREFIX>|--machine <ID>|--user"),
        ("find --limit 5", "--key-id <PREFIX>|--machine <ID>|--user"),
        ("find --key-id b0b1c2d", "key_id: the first 8 to 32"),
        ("find --machine M --limit 1001", "1..=1000"),
        ("find --machine M --consistency strong", "local, quorum"),
        ("recover nonsense --reason x", "key_id: a UUID"),
        ("recover b0b1c2d3-0000-4000-8000-000000000001", "--reason"),
        ("custody", "KEY_ID"),
        ("member add nonsense", "peer_address: host:port"),
        ("member remove", "ID"),
        ("member remove 0", "node: the id of a node"),
        ("member promote host:7421", "node: the id of a node"),
        ("member replace 3", "NEW"),
        ("member replace 3 nonsense", "replacement: host:port"),
        ("member transfer x", "node: the id of a node"),
        ("status --endpoints nonsense", "endpoints: host:port"),
        ("status --timeout 0", "1..=3600"),
        ("status --output xml", "table, json"),
        ("init --config F --offline-recipient a --offline-identity-out b", "--offline-identity-out"),
        ("keyring open --data D", "--identity"),
        ("keyring open --data D --identity F --key-id b0b1c2d", "key_id: the first 8 to 32"),
        ("keyring open --data D --identity F --machine M --export E", "--export"),
        ("bench escrow --clients 0", "1..=4096"),
        ("nonsense", "no such command"),
    ] {
        let message = parse(line).err().unwrap_or_default();
        assert!(message.contains(named), "{line}: {message}");
    }
}

#[test]
fn an_argument_that_may_be_a_secret_is_not_repeated() {
    let secret = "111111-222222-333333";
    for line in [
        format!("escrow --machine M --volume C: --kind generic {secret}"),
        format!("escrow --machine M --volume C: --kind generic --secret {secret}"),
        format!("escrow --machine M --volume C: --kind generic --secret={secret}"),
        format!("escrow --machine M --volume C: --kind {secret}"),
        format!("escrow --machine M --volume C: --kind generic --key-id {secret}"),
        format!("find --user {secret}"),
        format!("find --machine M --limit {secret}"),
        format!("find --machine M --consistency {secret}"),
        format!("recover {secret} --reason x"),
        format!("custody {secret}"),
        format!("cert {secret}"),
        format!("completions {secret}"),
        format!("status --output {secret}"),
        format!("status --endpoints {secret}"),
        format!("status --timeout {secret}"),
        secret.to_owned(),
    ] {
        let message = parse(&line).err().unwrap();
        assert!(!message.contains("111111"), "{message}");
    }
}

#[test]
fn no_command_takes_a_secret_as_an_argument() {
    let mut all = vec![command()];
    while let Some(next) = all.pop() {
        for argument in next.get_arguments() {
            let name = argument.get_id().as_str();
            let takes_value = argument.get_action().takes_values();
            assert!(!(takes_value && ["secret", "password", "key"].contains(&name)), "{name}");
        }
        all.extend(next.get_subcommands().cloned());
    }
}

#[test]
fn the_format_of_errors_is_known_even_if_the_arguments_do_not_parse() {
    let format = |line: &str| format_in(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>());
    assert_eq!(format("strongroom find --output json"), Format::Json);
    assert_eq!(format("strongroom --output=json find"), Format::Json);
    assert_eq!(format("strongroom find --output table"), Format::Table);
}
