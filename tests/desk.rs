//! The recovery desk: what each role may do, over the real ports; the policy, limits and approvals, the same wherever one
//! asks.

mod common;

use std::path::PathBuf;
use std::process::Output;

use common::*;
use strongroom::client::{Client, ClientError, ClientOptions};
use strongroom::escrow::features::FeatureLevel;
use strongroom::escrow::ids::{KeyId, NodeId, Role};
use strongroom::proto::{Consistency, FindRequest, ReadAuditRequest, StatusResponse};
use strongroom::seal::receipt::Receipt;
use strongroom::tls::ca::{Authority, IssueRequest};
use strongroom::tls::{Tls, TlsPaths};
use tokio::task::JoinSet;
use uuid::Uuid;

struct Desk {
    test: TestCluster,
    authority: Authority,
}

impl Desk {
    /// Three voters that follow policies.
    async fn new() -> Self {
        let test = three_nodes().await;
        let allowed = |status: &StatusResponse| status.feature_level >= FeatureLevel::DESK.0;
        test.cluster.wait_for("the feature level", SOON, &ALL, allowed).await.expect("raised");
        let authority = Authority::open(&test.cluster.layout().authority()).expect("the cluster's CA");
        Self { test, authority }
    }

    fn profile(&self, role: Role, name: &str) -> PathBuf {
        let dir = self.test.dir.path().join(format!("as-{role}-{}", name.replace('/', "-")));
        if !dir.exists() {
            let issued = self.authority.issue(IssueRequest::new(role, name)).expect("issued");
            self.authority.write_profile(&dir, &issued).expect("written");
        }
        dir
    }

    /// A client with a certificate of `role` and `name`, which asks only `node`.
    fn client(&self, role: Role, name: &str, node: NodeId) -> Client {
        let layout = self.test.cluster.layout();
        let endpoint = layout.node(node).expect("a node").api_address().parse().expect("an address");
        let tls = Tls::load(TlsPaths::profile(&self.profile(role, name))).expect("a profile");
        Client::new(vec![endpoint], tls, ClientOptions::default()).expect("a client")
    }

    async fn escrow(&self, n: u64) -> Receipt {
        self.test.client("importer", &ALL).escrow(&deposit(n)).await.expect("kept")
    }

    async fn set_policy(&self, policy: &str) -> u64 {
        let officer = self.client(Role::Officer, "olga", 1);
        let version = officer.policy(Consistency::Quorum).await.expect("shown").version;
        officer.set_policy(policy, version).await.expect("set")
    }
}

/// What a command that succeeded printed.
#[track_caller]
fn done(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a document")
}

/// Whether a request was let through, whatever came of it then.
fn let_in<T>(answer: Result<T, ClientError>) -> bool {
    match answer {
        Ok(_) | Err(ClientError::NotFound(_) | ClientError::Conflict(_) | ClientError::Invalid(_)) => true,
        Err(ClientError::Denied(_)) => false,
        Err(other) => panic!("neither done nor denied: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_can_do_over_the_ports_exactly_what_the_table_says() {
    let desk = Desk::new().await;
    let known = desk.escrow(1).await.key_id;
    // escrow, find, recover, custody, status, show the policy, set it, approve, list approvals, change the membership,
    // rotate the data key, read the audit trail, ask for checkpoints, ask what is owed, confirm a key
    let table = [
        (Role::Agent, "PC-00001", "x...x........xx"),
        (Role::Auditor, "ada", ".x.xxx.....xx.."),
        (Role::Helpdesk, "desk1", ".xxxxx........."),
        (Role::HelpdeskAdvanced, "desk2", ".xxxxx.xx......"),
        (Role::Importer, "imp", "x...x........xx"),
        (Role::Officer, "olga", ".x.xxxxxx.x...."),
        (Role::Operator, "ops", ".x.xxx...xx...."),
        (Role::SelfService, "CORP/user1", ".xx.x.........."),
    ];
    assert_eq!(table.len(), Role::ALL.len() - 1, "every role but nodes, which have a port of their own");
    for (node, (role, name, expected)) in ALL.iter().cycle().zip(table) {
        let client = desk.client(role, name, *node);
        let user = deposit(1).user;
        let find = FindRequest { machine: deposit(1).machine.to_string(), ..FindRequest::default() };
        let dry_run = strongroom::proto::MembershipChange {
            dry_run: true,
            change: Some(strongroom::proto::membership_change::Change::Transfer(
                strongroom::proto::TransferLeader { to: None },
            )),
            ..Default::default()
        };
        let allowed = [
            let_in(client.escrow(&deposit(1)).await),
            let_in(client.find(&find).await),
            let_in(client.recover(known, "the table of roles", user.as_ref()).await),
            let_in(client.custody(known, None).await),
            let_in(client.status().await),
            let_in(client.policy(Consistency::Local).await),
            let_in(client.set_policy("{}", u64::MAX).await),
            let_in(client.decide_approval(Uuid::new_v4(), true).await),
            let_in(client.approvals(Consistency::Local).await),
            let_in(client.change_membership(&dry_run).await),
            let_in(client.rotate_keyring().await),
            let_in(client.read_audit(&ReadAuditRequest::default()).await),
            let_in(client.audit_checkpoints().await),
            let_in(client.rotation(&deposit(1).machine, 0).await),
            let_in(client.confirm_key(&deposit(1).machine, KeyId(Uuid::new_v4())).await),
        ];
        let allowed: String = allowed.iter().map(|allowed| if *allowed { 'x' } else { '.' }).collect();
        assert_eq!(allowed, expected, "{role}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_user_sees_only_keys_of_machines_that_know_that_user() {
    let desk = Desk::new().await;
    let (own, foreign) = (desk.escrow(1).await, desk.escrow(2).await);
    assert_ne!(deposit(1).user, deposit(2).user);
    let user = desk.client(Role::SelfService, "corp/USER1", 2);
    let find = |machine: &str| FindRequest {
        machine: machine.to_owned(),
        consistency: Consistency::Quorum.into(),
        ..FindRequest::default()
    };
    let found = user.find(&find(own.machine.as_str())).await.expect("found");
    assert_eq!(found.keys.len(), 1);
    let found = user.find(&find(foreign.machine.as_str())).await.expect("answered");
    assert!(found.keys.is_empty(), "not even that there is one");
    let everything = FindRequest { user: String::new(), ..FindRequest::default() };
    let found = user.find(&everything).await.expect("one's own keys, if nothing else is asked");
    assert!(found.keys.iter().all(|key| key.machine == own.machine.as_str()) && !found.keys.is_empty());
    let another = FindRequest { user: r"CORP\user2".to_owned(), ..FindRequest::default() };
    let found = user.find(&another).await.expect("answered");
    assert!(found.keys.is_empty(), "another user's machine: {found:?}");

    user.recover(own.key_id, "locked out", None).await.expect("one's own key");
    let refused = user.recover(foreign.key_id, "locked out", None).await.expect_err("somebody else's");
    let unknown = user.recover(KeyId(Uuid::new_v4()), "locked out", None).await.expect_err("nobody's");
    assert_eq!(refused.to_string(), unknown.to_string(), "one cannot tell one from the other");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_when_one_person_asks_on_every_node_at_once() {
    let desk = Desk::new().await;
    let key = desk.escrow(1).await.key_id;
    desk.set_policy(r#"{"limits": {"person_per_hour": 3}}"#).await;
    let mut asks = JoinSet::new();
    for node in ALL {
        for role in [Role::Helpdesk, Role::HelpdeskAdvanced] {
            for _ in 0..3 {
                let client = desk.client(role, "dora", node);
                asks.spawn(
                    async move { client.recover(key, "asked everywhere", deposit(1).user.as_ref()).await },
                );
            }
        }
    }
    let (shown, refused) = outcomes(asks).await;
    assert_eq!((shown, refused.len()), (3, 15));
    for why in refused {
        assert!(why.contains("you have revealed 3 keys") && why.contains("possible at"), "{why}");
    }
    let other = desk.client(Role::HelpdeskAdvanced, "dirk", 2);
    other.recover(key, "somebody else", None).await.expect("others are not held up");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_is_anothers_and_is_used_once_whatever_nodes_are_asked() {
    let desk = Desk::new().await;
    let key = desk.escrow(1).await.key_id;
    let machine = deposit(1).machine;
    desk.set_policy(&format!(r#"{{"approval": {{"machines": ["{machine}"]}}}}"#)).await;

    let asker = desk.client(Role::HelpdeskAdvanced, "dora", 1);
    let refused = asker.recover(key, "locked out", None).await.expect_err("a second person is needed");
    assert!(matches!(refused, ClientError::Denied(_)), "{refused}");
    assert!(refused.to_string().contains("another person must approve"), "{refused}");

    // The second person asks another node, and sees why.
    let officer = desk.client(Role::Officer, "olga", 3);
    let waiting = officer.approvals(Consistency::Quorum).await.expect("listed").approvals;
    let [approval] = waiting.as_slice() else { panic!("one waits: {waiting:?}") };
    assert_eq!((approval.reason.as_str(), approval.granted_by.as_str()), ("locked out", ""));
    assert!(refused.hint().expect("what to do").contains(&approval.id), "{refused}");
    let id = approval.id.parse().expect("a UUID");

    let own = asker.decide_approval(id, true).await.expect_err("one's own");
    assert!(own.to_string().contains("asked for themselves"), "{own}");
    let denied = ["audit", "list", "--outcome", "denied", "--actor", "dora", "--consistency", "quorum"];
    let denied = done(&desk.test.strongroom("auditor", &ALL, &denied));
    let [record] = denied["records"].as_array().expect("records").as_slice() else { panic!("{denied}") };
    assert_eq!(
        (&record["event"], &record["details"]["approval"], &record["details"]["granted"]),
        (&"approval-refused".into(), &approval.id.as_str().into(), &true.into())
    );
    officer.decide_approval(id, true).await.expect("granted");

    let mut asks = JoinSet::new();
    for node in ALL {
        let client = desk.client(Role::HelpdeskAdvanced, "dora", node);
        for _ in 0..2 {
            let client = client.clone();
            asks.spawn(async move { client.recover(key, "locked out", None).await });
        }
    }
    let (shown, refused) = outcomes(asks).await;
    assert_eq!((shown, refused.len()), (1, 5));

    // What was asked for after it was used waits anew, as one request, and can be refused.
    let waiting = officer.approvals(Consistency::Quorum).await.expect("listed").approvals;
    let [approval] = waiting.as_slice() else { panic!("one waits: {waiting:?}") };
    officer.decide_approval(approval.id.parse().expect("a UUID"), false).await.expect("rejected");
    assert!(officer.approvals(Consistency::Quorum).await.expect("listed").approvals.is_empty());
}

/// How many keys were shown, and what the others were told.
async fn outcomes<T: 'static>(mut asks: JoinSet<Result<T, ClientError>>) -> (usize, Vec<String>) {
    let (mut shown, mut refused) = (0, Vec::new());
    while let Some(answer) = asks.join_next().await {
        match answer.expect("no panic") {
            Ok(_) => shown += 1,
            Err(ClientError::Denied(why)) => refused.push(why.to_string()),
            Err(other) => panic!("neither shown nor denied: {other}"),
        }
    }
    (shown, refused)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_policy_and_approval_say_what_is_wrong_and_what_to_do() {
    let desk = Desk::new().await;
    let key: KeyId = desk.escrow(1).await.key_id;
    let file = desk.test.dir.path().join("policy.json");
    let path = file.to_str().expect("text");
    let officer = |arguments: &[&str]| desk.test.strongroom("officer", &ALL, arguments);

    std::fs::write(&file, r#"{"limits": {"person_per_hour": 0}}"#).expect("written");
    for arguments in [&["policy", "set", path, "--check"][..], &["policy", "set", path]] {
        let (code, error) = failure(&officer(arguments));
        assert_eq!(code, 2, "{error}");
        assert!(
            error["message"].as_str().expect("text").contains("policy.limits.person_per_hour"),
            "{error}"
        );
    }
    let missing = officer(&["policy", "set", "/nonexistent/policy.json"]);
    assert_eq!(failure(&missing).0, 2);

    let machine = deposit(1).machine;
    let policy = format!(
        r#"{{"reasons": {{"listed": ["Forgotten PIN"], "free_text": false}}, "approval": {{"machines": ["{machine}"]}}}}"#
    );
    std::fs::write(&file, policy).expect("written");
    let denied = desk.test.strongroom("operator", &ALL, &["policy", "set", path]);
    assert_eq!(failure(&denied).0, 4);
    let set = done(&officer(&["policy", "set", path]));
    assert_eq!(set["version"], 1);
    // The same policy again is no change, whatever it is said to replace.
    assert_eq!(done(&officer(&["policy", "set", path, "--replaces", "7"]))["version"], 1);
    std::fs::write(&file, "{}").expect("written");
    assert_eq!(failure(&officer(&["policy", "set", path, "--replaces", "7"])).0, 5);
    let shown = done(&desk.test.strongroom("auditor", &ALL, &["policy", "show", "--consistency", "quorum"]));
    assert_eq!(
        (&shown["version"], &shown["policy"]["reasons"]["listed"][0]),
        (&1.into(), &"Forgotten PIN".into())
    );

    let key = key.to_string();
    let recover = |reason: &str| {
        desk.test.strongroom("helpdesk-advanced", &ALL, &["recover", &key, "--reason", reason])
    };
    let (code, error) = failure(&recover("because"));
    assert_eq!(code, 2, "{error}");
    assert!(error["message"].as_str().expect("text").contains("Forgotten PIN"), "{error}");
    let (code, error) = failure(&recover("forgotten pin"));
    assert_eq!(code, 4, "{error}");
    let hint = error["hint"].as_str().expect("a hint");
    let grant = hint.split('`').nth(1).expect("the command to run");
    let words: Vec<&str> = grant.split(' ').skip(1).collect();
    assert_eq!(done(&officer(&words))["granted"], true, "{grant}");
    assert!(done(&recover("forgotten pin"))["secret"].is_string());
    let (code, error) = failure(&officer(&words));
    assert_eq!(code, 3, "used once: {error}");
}
