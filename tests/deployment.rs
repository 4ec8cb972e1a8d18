//! The files of `cluster/` that run a real cluster: every configuration in them is one that the node accepts, and what
//! they say of each other fits.
#![allow(clippy::unwrap_used)] // a test that cannot go on should stop where it is

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use strongroom::config::{Config, Loaded, Overrides};
use yaml_rust2::{Yaml, YamlLoader};

/// What a stop may take beside `limits.drain_timeout_ms`, as the server tells its service manager.
const BESIDE_DRAIN: Duration = Duration::from_secs(60);

fn cluster_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(cluster_file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The documents of a YAML file.
fn documents(name: &str) -> Vec<Yaml> {
    YamlLoader::load_from_str(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn of_kind<'a>(documents: &'a [Yaml], kind: &str) -> &'a Yaml {
    let mut found = documents.iter().filter(|document| document["kind"].as_str() == Some(kind));
    found.next().unwrap_or_else(|| panic!("no {kind}"))
}

fn list(node: &Yaml) -> &Vec<Yaml> {
    node.as_vec().unwrap_or_else(|| panic!("a list, not {node:?}"))
}

fn text(node: &Yaml) -> &str {
    node.as_str().unwrap_or_else(|| panic!("a text, not {node:?}"))
}

/// What the node makes of `toml` with `environment` over it.
fn configured(toml: &str, environment: &BTreeMap<String, String>) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    fs::write(&path, toml).unwrap();
    let environment = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Loaded::load(&path, Overrides::new(environment, &[])).unwrap_or_else(|error| panic!("{error}")).config
}

/// Whether `nodes` can be one cluster: each with its own id and addresses, and the same consensus.
fn assert_one_cluster(nodes: &[Config]) {
    let distinct = |of: fn(&Config) -> String| nodes.iter().map(of).collect::<BTreeSet<_>>().len();
    assert_eq!(
        nodes.iter().map(|node| node.node_id).collect::<Vec<_>>(),
        (1..=nodes.len() as u64).collect::<Vec<_>>()
    );
    assert_eq!(distinct(|node| node.advertise.api.clone()), nodes.len());
    assert_eq!(distinct(|node| node.advertise.peer.clone()), nodes.len());
    assert_eq!(distinct(|node| format!("{} {:?}", node.cluster, node.raft)), 1);
}

/// Whether the runbook's way to revoke reaches the node: the CA's list, as a file beside the bundle, where it is
/// replaced while the node runs.
fn is_told_of_revocations(node: &Config) -> bool {
    let list = node.tls.crl.as_deref();
    list.is_some_and(|list| list == node.tls.ca.with_file_name(strongroom::tls::ca::CRL_FILE))
}

#[test]
fn every_node_file_is_a_configuration_of_one_cluster() {
    for (folder, size) in [("three", 3), ("five", 5), ("local", 3)] {
        let nodes: Vec<Config> = (1..=size)
            .map(|n| Config::load(&cluster_file(&format!("{folder}/node{n}.toml"))).unwrap())
            .collect();
        assert_one_cluster(&nodes);
        assert!(nodes.iter().all(is_told_of_revocations), "{folder}");
    }
}

#[test]
fn the_compose_file_runs_three_nodes_that_find_each_other() {
    let documents = documents("compose/compose.yaml");
    let services = documents[0]["services"].as_hash().unwrap();
    let toml = read("compose/node.toml");
    let mut nodes = Vec::new();
    for (name, service) in services {
        let name = text(name);
        // Merge keys are the composer's to resolve: what is not said here is said in the common part.
        let field = |field: &str| match &service[field] {
            Yaml::BadValue => service["<<"][field].clone(),
            said => said.clone(),
        };
        let environment = field("environment");
        let environment = environment.as_hash().unwrap();
        let environment: BTreeMap<String, String> =
            environment.iter().map(|(name, value)| (text(name).to_owned(), text(value).to_owned())).collect();
        let config = configured(&toml, &environment);
        assert_eq!(
            config.advertise.peer,
            format!("{name}:7421"),
            "others reach it by the name of its service"
        );
        for volume in list(&field("volumes")) {
            let inside = text(volume).split(':').nth(1).unwrap();
            let used = [&config.data_dir, &config.tls.key].iter().any(|path| path.starts_with(inside));
            assert!(used || inside == "/etc/strongroom/node.toml", "{inside} is of no use");
        }
        assert_eq!(text(&field("image")), format!("strongroom:{}", env!("CARGO_PKG_VERSION")));
        assert_eq!(text(&field("pull_policy")), "never", "it is built here");
        assert_eq!(field("mem_limit"), field("memswap_limit"), "memory and no swap");
        assert!(field("mem_limit").as_str().is_some(), "without a limit the other means nothing");
        let patience: u64 = text(&field("stop_grace_period")).strip_suffix('s').unwrap().parse().unwrap();
        assert!(Duration::from_secs(patience) > config.limits.drain_timeout() + BESIDE_DRAIN);
        let probe: Vec<String> =
            list(&field("healthcheck")["test"]).iter().map(|word| text(word).to_owned()).collect();
        assert_eq!(probe, ["CMD", "strongroom", "health"]);
        assert_eq!(config.listen.admin.to_string(), "127.0.0.1:7422", "where `health` asks");
        assert!(is_told_of_revocations(&config), "{name}");
        nodes.push(config);
    }
    assert_one_cluster(&nodes);
    let dockerfile = read("compose/Dockerfile");
    assert!(dockerfile.contains("ENTRYPOINT [\"/usr/bin/strongroom\"]"), "{dockerfile}");
}

/// The environment of a container of pod `index`, as the platform makes it.
fn pod_environment(container: &Yaml, index: usize) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::new();
    for variable in list(&container["env"]) {
        let value = match variable["value"].as_str() {
            Some(value) => {
                environment.iter().fold(value.to_owned(), |text, (name, value): (&String, &String)| {
                    text.replace(&format!("$({name})"), value)
                })
            }
            None => match text(&variable["valueFrom"]["fieldRef"]["fieldPath"]) {
                "metadata.name" => format!("strongroom-{index}"),
                "metadata.namespace" => "escrow".to_owned(),
                // What older clusters do not say is empty.
                "metadata.labels['topology.kubernetes.io/zone']" if index == 1 => String::new(),
                "metadata.labels['topology.kubernetes.io/zone']" => format!("zone-{index}"),
                other => panic!("unknown field {other}"),
            },
        };
        assert!(!value.contains("$("), "{value} is not resolved");
        environment.insert(text(&variable["name"]).to_owned(), value);
    }
    environment
}

/// The configuration that pod `index` is given, from the ConfigMap's key that its arguments name.
fn pod_configuration(map: &Yaml, container: &Yaml, index: usize) -> Config {
    let environment = pod_environment(container, index);
    let path =
        text(list(&container["args"]).iter().skip_while(|arg| text(arg) != "--config").nth(1).unwrap());
    let path = path.replace("$(POD_NAME)", &format!("strongroom-{index}"));
    let mounts = list(&container["volumeMounts"]);
    let mount = mounts.iter().find(|mount| text(&mount["name"]) == "config").unwrap();
    let key = Path::new(&path).strip_prefix(text(&mount["mountPath"])).unwrap().to_str().unwrap();
    configured(text(&map["data"][key]), &environment)
}

/// The certificate and key that a pod mounts are its own: what is in the Secret under its name.
fn assert_mounts_its_own_pair(pod: &Yaml, container: &Yaml, index: usize) {
    let name = format!("strongroom-{index}");
    let mounts = list(&container["volumeMounts"]);
    let mount = mounts.iter().find(|mount| text(&mount["name"]) == "tls").unwrap();
    let part = mount["subPathExpr"].as_str().or(mount["subPath"].as_str()).unwrap();
    assert_eq!(part.replace("$(POD_NAME)", &name), name);
    let secret = list(&pod["volumes"]).iter().find(|volume| text(&volume["name"]) == "tls").unwrap();
    let items: BTreeSet<(&str, &str)> = list(&secret["secret"]["items"])
        .iter()
        .map(|item| (text(&item["key"]), text(&item["path"])))
        .filter(|(_, path)| path.starts_with(&format!("{name}/")))
        .collect();
    let [certificate, key] =
        ["crt", "key"].map(|end| (format!("{name}.{end}"), format!("{name}/node.{end}")));
    let expected = [&certificate, &key].map(|(key, path)| (key.as_str(), path.as_str()));
    assert_eq!(items, BTreeSet::from(expected));
}

#[test]
fn the_kubernetes_pods_are_nodes_of_one_cluster_and_the_first_is_the_one_that_was_initialised() {
    let (common, all) = (documents("kubernetes/config.yaml"), documents("kubernetes/strongroom.yaml"));
    let map = of_kind(&common, "ConfigMap");
    let set = of_kind(&all, "StatefulSet");
    let spec = &set["spec"];
    let pod = &spec["template"]["spec"];
    let container = &list(&pod["containers"])[0];
    let first = usize::try_from(spec["ordinals"]["start"].as_i64().unwrap()).unwrap();
    let replicas = usize::try_from(spec["replicas"].as_i64().unwrap()).unwrap();
    let pods = first..first + replicas;
    let nodes: Vec<Config> = pods.clone().map(|index| pod_configuration(map, container, index)).collect();
    assert_one_cluster(&nodes);
    assert_eq!(nodes.iter().map(|node| node.zone.as_str()).collect::<Vec<_>>(), ["", "zone-2", "zone-3"]);
    pods.for_each(|index| assert_mounts_its_own_pair(pod, container, index));

    let init = documents("kubernetes/init.yaml");
    let job = &of_kind(&init, "Job")["spec"]["template"]["spec"];
    let once = &list(&job["containers"])[0];
    assert_eq!(pod_configuration(map, once, 1), nodes[0]);
    assert_mounts_its_own_pair(job, once, 1);
    for (what, of_first) in
        [("image", &container["image"]), ("imagePullPolicy", &container["imagePullPolicy"])]
    {
        assert_eq!(&once[what], of_first, "{what}");
    }
    let claim = text(&of_kind(&init, "PersistentVolumeClaim")["metadata"]["name"]);
    let template = text(&list(&spec["volumeClaimTemplates"])[0]["metadata"]["name"]);
    assert_eq!(
        claim,
        format!("{template}-{}-1", text(&set["metadata"]["name"])),
        "the first pod takes it over"
    );
}

#[test]
fn what_the_kubernetes_files_say_of_each_other_fits() {
    let (common, all) = (documents("kubernetes/config.yaml"), documents("kubernetes/strongroom.yaml"));
    let map = of_kind(&common, "ConfigMap");
    let spec = &of_kind(&all, "StatefulSet")["spec"];
    let pod = &spec["template"]["spec"];
    let container = &list(&pod["containers"])[0];
    let config = pod_configuration(map, container, 1);

    let ports: BTreeMap<&str, i64> = list(&container["ports"])
        .iter()
        .map(|port| (text(&port["name"]), port["containerPort"].as_i64().unwrap()))
        .collect();
    for (name, address) in
        [("admin", config.listen.admin), ("api", config.listen.api), ("peer", config.listen.peer)]
    {
        assert_eq!(ports[name], i64::from(address.port()));
        assert!(address.ip().is_unspecified(), "{name} is reached from outside of the pod");
    }
    for (probe, path) in
        [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]
    {
        let asked = &container[probe]["httpGet"];
        assert_eq!((text(&asked["path"]), text(&asked["port"])), (path, "admin"), "{probe}");
    }
    let patience = u64::try_from(pod["terminationGracePeriodSeconds"].as_i64().unwrap()).unwrap();
    assert!(Duration::from_secs(patience) > config.limits.drain_timeout() + BESIDE_DRAIN);

    let mounts: Vec<&str> =
        list(&container["volumeMounts"]).iter().map(|mount| text(&mount["mountPath"])).collect();
    for path in [&config.data_dir, &config.tls.ca, &config.tls.cert, &config.tls.key] {
        assert!(mounts.iter().any(|mount| path.starts_with(mount)), "{} is not mounted", path.display());
    }
    // What is trusted comes in whole, as one ConfigMap, and follows changes; the runbook makes it, and makes it anew.
    assert!(is_told_of_revocations(&config));
    let runbook = read("README.md");
    let (of_trust, made) = ("create configmap strongroom-trust", |file: &Path| {
        format!("--from-file={}=", file.file_name().unwrap().to_str().unwrap())
    });
    let commands: Vec<&str> = runbook.lines().filter(|line| line.contains(of_trust)).collect();
    assert_eq!(commands.len(), 2, "{commands:?}");
    for file in [&config.tls.ca, config.tls.crl.as_ref().unwrap()] {
        assert!(commands.iter().all(|line| line.contains(&made(file))), "{} in {commands:?}", file.display());
    }
    let trust = list(&container["volumeMounts"])
        .iter()
        .find(|mount| config.tls.ca.starts_with(text(&mount["mountPath"])))
        .unwrap();
    assert!(
        trust["subPath"].is_badvalue() && trust["subPathExpr"].is_badvalue(),
        "such a mount stays as it is"
    );

    // A release, not whatever a tag means by then; and no swap for what may use no more than it asks for.
    assert!(text(&container["image"]).ends_with(&format!("/strongroom:{}", env!("CARGO_PKG_VERSION"))));
    assert_eq!(text(&container["imagePullPolicy"]), "IfNotPresent");
    let resources = &container["resources"];
    assert_eq!(resources["requests"]["memory"], resources["limits"]["memory"]);
    assert!(resources["limits"]["cpu"].is_badvalue(), "a node that is held back misses its heartbeats");

    // The root of a volume is not the pod's own, and a node takes its directory's permissions into its hands.
    assert!(!mounts.contains(&config.data_dir.to_str().unwrap()));

    let label = &spec["template"]["metadata"]["labels"];
    let disruption = &of_kind(&all, "PodDisruptionBudget")["spec"];
    assert_eq!(disruption["maxUnavailable"].as_i64(), Some(1));
    assert_eq!(&disruption["selector"]["matchLabels"], label);
    assert_eq!(&spec["selector"]["matchLabels"], label);
    let headless =
        all.iter().find(|document| document["spec"]["clusterIP"].as_str() == Some("None")).unwrap();
    assert_eq!(headless["metadata"]["name"], spec["serviceName"]);
    assert_eq!(
        headless["spec"]["publishNotReadyAddresses"].as_bool(),
        Some(true),
        "who waits to be added is reached"
    );
    assert!(config.advertise.peer.contains(&format!(".{}.", text(&spec["serviceName"]))));

    let secret = list(&pod["volumes"]).iter().find(|volume| text(&volume["name"]) == "tls").unwrap();
    assert_eq!(secret["secret"]["defaultMode"].as_i64(), Some(0o400), "a key for nobody but the pod's group");
}

/// The units with the tested binary in place of the installed one, for tools that look whether it exists.
fn units(dir: &Path) -> [PathBuf; 2] {
    let place = |name: &str, placed: &str| {
        let unit = read(&format!("systemd/{name}"));
        let path = dir.join(placed);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, unit.replace("/usr/bin/strongroom", env!("CARGO_BIN_EXE_strongroom"))).unwrap();
        path
    };
    place("strongroom.service.d/sealed-identity.conf", "strongroom.service.d/sealed-identity.conf");
    [
        place("strongroom.service", "strongroom.service"),
        place("strongroom-init@.service", "strongroom-init@age1x.service"),
    ]
}

/// Whether `systemd-analyze` is here and knows `--offline`; says so if not.
fn systemd_is_here() -> bool {
    let version = Command::new("systemd-analyze").arg("--version").output().ok();
    let version = version.and_then(|output| String::from_utf8(output.stdout).ok());
    let version = version.and_then(|text| text.split_whitespace().nth(1)?.parse::<u32>().ok());
    let here = version.is_some_and(|version| version >= 252);
    if !here {
        eprintln!("SKIPPED: systemd-analyze 252 or newer is not installed, found {version:?}");
    }
    here
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    if !systemd_is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args(units(dir.path()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // It loads every unit these need, and may have something to say of those as well.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("strongroom")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
}

#[test]
fn the_service_is_sandboxed() {
    if !systemd_is_here() {
        return;
    }
    /// Tenths of the exposure level, of 100: below 2 is what a service with a network of its own can reach.
    const EXPOSURE_MAX: &str = "--threshold=15";
    let dir = tempfile::tempdir().unwrap();
    let [service, _] = units(dir.path());
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=yes", "--no-pager", EXPOSURE_MAX])
        .arg(service)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn the_service_fits_the_nodes_configuration_and_its_exit_codes() {
    let unit = read("systemd/strongroom.service");
    let value = |name: &str| {
        let prefix = format!("{name}=");
        unit.lines()
            .find_map(|line| line.strip_prefix(&prefix))
            .unwrap_or_else(|| panic!("no {name}"))
            .to_owned()
    };
    let environment: BTreeMap<String, String> = unit
        .lines()
        .filter_map(|line| line.strip_prefix("Environment=")?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.replace("%d", "/run/credentials/strongroom.service")))
        .collect();
    let config = configured(&read("three/node1.toml"), &environment);
    assert!(config.tls.key.starts_with("/run/credentials"), "the key is a credential");
    assert!(config.tls.cert.starts_with("/run/credentials"), "and the certificate that belongs to it");
    assert!(unit.contains("LoadCredential=node.key:/etc/strongroom/tls/node.key"));
    assert!(is_told_of_revocations(&config), "a file, and no credential: those are read once, at the start");
    assert_eq!(config.data_dir, Path::new("/var/lib").join(value("StateDirectory")));
    assert_eq!(value("Type"), "notify");
    let patience: u64 = value("TimeoutStopSec").parse().unwrap();
    assert!(Duration::from_secs(patience) > config.limits.drain_timeout() + BESIDE_DRAIN);
    assert_eq!(value("RestartPreventExitStatus"), "2 5");
}
