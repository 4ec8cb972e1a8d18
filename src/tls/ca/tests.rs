use std::os::unix::fs::PermissionsExt;

use x509_parser::prelude::{FromDer, X509Certificate};

use super::params::SERIAL_BYTES;
use super::*;
use crate::tls::tests::TestCa;
use crate::tls::trust::Side;
use crate::tls::{CertificateFault, RevocationFile, Tls, TlsPaths, TrustAnchors};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn der(pem: &str) -> Vec<u8> {
    x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents
}

#[test]
fn private_files_are_private_and_public_ones_are_not_writable_by_others() {
    let ca = TestCa::new("acme");
    let (paths, _) = ca.profile(IssueRequest::new(Role::Agent, "PC-0001"));
    assert_eq!(mode(&ca.place("ca")), 0o700);
    for private in [ca.place("ca").join(CA_KEY_FILE), paths.key] {
        assert_eq!(mode(&private), 0o600, "{}", private.display());
    }
    let public = [CA_CERTIFICATE_FILE, CRL_FILE, INDEX_FILE].map(|name| ca.place("ca").join(name));
    for public in public.into_iter().chain([paths.ca, paths.cert]) {
        assert_eq!(mode(&public) & 0o133, 0, "{}", public.display());
    }
}

#[test]
fn the_ca_certificate_may_sign_leaves_and_lists_and_nothing_else() {
    let ca = TestCa::new("acme");
    let der = der(std::str::from_utf8(&ca.ca_pem()).unwrap());
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    let constraints = certificate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    let usage = certificate.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
    assert!(!usage.value.digital_signature());
    assert_eq!(ca.authority.facts().not_after - unix_now(), CA_VALIDITY.as_secs());
}

#[test]
fn a_leaf_carries_one_identity_and_only_the_purposes_of_its_role() {
    let ca = TestCa::new("acme");
    for role in Role::ALL {
        let name = if role == Role::SelfService { "CORP/7" } else { "7" };
        let issued = ca.authority.issue(IssueRequest {
            dns: vec!["strongroom.example".to_owned()],
            ips: vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
            ..IssueRequest::new(role, name)
        });
        let issued = issued.unwrap();
        let der = der(&issued.cert_pem);
        let facts = CertificateFacts::parse(&der).unwrap();
        assert_eq!(facts.uris, [format!("spiffe://acme/{role}/{name}")]);
        assert_eq!(facts.identity.unwrap(), issued.record.identity);
        assert_eq!((facts.dns.len(), facts.ips.len()), (1, 2));
        assert_eq!(facts.serial.len(), 2 * SERIAL_BYTES);

        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        let purposes = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(purposes.client_auth && !purposes.any);
        assert_eq!(purposes.server_auth, role == Role::Node);
        let constraints = certificate.basic_constraints().unwrap().unwrap();
        assert!(!constraints.value.ca);
        let has = |oid: &str| certificate.extensions().iter().any(|found| found.oid.to_id_string() == oid);
        assert!(has("2.5.29.14") && has("2.5.29.35"), "subject and authority key identifiers");
        let days = if role == Role::Node { 365 } else { 90 };
        assert_eq!(facts.not_after - facts.not_before, days * 24 * 3600 + BACKDATE.as_secs());
        assert!(facts.not_before < unix_now());
    }
}

#[test]
fn serial_numbers_are_drawn_at_random() {
    let serials: std::collections::BTreeSet<_> = (0..64).map(|_| random_serial().unwrap()).collect();
    assert_eq!(serials.len(), 64);
}

#[test]
fn a_certificate_does_not_outlive_its_ca() {
    let dir = tempfile::tempdir().unwrap();
    let hour = Some(Validity::For(Duration::from_secs(3_600)));
    let authority = Authority::create(dir.path(), "acme".parse().unwrap(), hour).unwrap();
    let issued = authority.issue(IssueRequest::new(Role::Node, "1")).unwrap();
    assert_eq!(issued.record.not_after, authority.facts().not_after);
}

#[test]
fn an_expired_ca_issues_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let now = unix_now();
    let ended = Some(Validity::Between { not_before: now - 20, not_after: now - 10 });
    let authority = Authority::create(dir.path(), "acme".parse().unwrap(), ended).unwrap();
    let error = authority.issue(IssueRequest::new(Role::Node, "1")).unwrap_err();
    assert!(error.to_string().contains("expired at"), "{error}");
    assert_eq!(authority.list().unwrap(), []);
}

#[test]
fn an_opened_ca_goes_on_where_it_was_left() {
    let ca = TestCa::new("acme");
    let first = ca.authority.issue(IssueRequest::new(Role::Node, "1")).unwrap().record;
    let reopened = Authority::open(&ca.place("ca")).unwrap();
    assert_eq!(reopened.cluster().as_str(), "acme");
    let second = reopened.issue(IssueRequest::new(Role::Node, "2")).unwrap().record;
    assert_eq!(ca.authority.list().unwrap(), [first, second]);
}

#[test]
fn a_ca_is_never_made_over_another() {
    let ca = TestCa::new("acme");
    let before = ca.ca_pem();
    let again = Authority::create(&ca.place("ca"), "acme".parse().unwrap(), None);
    assert!(matches!(again, Err(TlsError::Exists { .. })));
    assert_eq!(ca.ca_pem(), before);
}

#[test]
fn files_of_a_certificate_are_never_overwritten_by_a_new_one() {
    let ca = TestCa::new("acme");
    let (paths, issued) = ca.profile(IssueRequest::new(Role::Agent, "PC-0001"));
    let dir = paths.key.parent().unwrap();
    assert!(matches!(ca.authority.write_profile(dir, &issued), Err(TlsError::Exists { .. })));
}

#[test]
fn a_renewed_certificate_keeps_identity_and_names_with_a_new_key() {
    let ca = TestCa::new("acme");
    let request =
        IssueRequest { dns: vec!["pc.example".to_owned()], ..IssueRequest::new(Role::Agent, "PC-0001") };
    let (paths, first) = ca.profile(request);
    let renewed = ca.authority.renew(&Selector::Identity(first.record.identity.clone()), None).unwrap();
    assert_eq!(renewed.record.identity, first.record.identity);
    assert_eq!(renewed.record.dns, first.record.dns);
    assert_ne!(renewed.record.serial, first.record.serial);
    assert_ne!(renewed.key_pem.expose(), first.key_pem.expose());

    let dir = paths.cert.parent().unwrap();
    ca.authority.replace(dir, &renewed, FileNames::CLIENT).unwrap();
    assert_eq!(mode(&paths.key), 0o600);
    assert_eq!(Tls::load(TlsPaths::profile(dir)).unwrap().identity(), first.record.identity);
    let left = std::fs::read_dir(dir).unwrap().count();
    assert_eq!(left, 3, "no temporary file is left");
}

#[test]
fn a_revoked_certificate_is_on_the_list_and_cannot_be_renewed() {
    let ca = TestCa::new("acme");
    let (mut paths, issued) = ca.profile(IssueRequest::new(Role::Agent, "PC-0001"));
    paths.crl = RevocationFile::Required(ca.authority.revocation_list_path());
    Tls::load(paths.clone()).unwrap();
    let which = Selector::Identity(issued.record.identity.clone());
    let revoked = ca.authority.revoke(&which).unwrap();
    assert_eq!(revoked.len(), 1);
    assert!(revoked[0].revoked_at.is_some());
    assert_eq!(ca.authority.revoke(&which).unwrap(), revoked, "once revoked, it stays as it was");
    assert!(matches!(ca.authority.renew(&which, None), Err(TlsError::NotRenewable(_))));
    let error = Tls::load(paths.clone()).unwrap_err().to_string();
    assert!(error.ends_with("is revoked"), "{error}");

    // A new one for the same identity is another certificate.
    let again = ca.authority.issue(IssueRequest::new(Role::Agent, "PC-0001")).unwrap();
    ca.authority.replace(paths.cert.parent().unwrap(), &again, FileNames::CLIENT).unwrap();
    Tls::load(paths).unwrap();
}

#[test]
fn what_was_never_issued_cannot_be_revoked_or_renewed() {
    let ca = TestCa::new("acme");
    let which = Selector::Serial("00ff".to_owned());
    assert!(matches!(ca.authority.revoke(&which), Err(TlsError::NotIssued(_))));
    assert!(matches!(ca.authority.renew(&which, None), Err(TlsError::NotIssued(_))));
}

#[test]
fn a_line_a_power_cut_left_unfinished_does_not_hurt_the_index() {
    let ca = TestCa::new("acme");
    let first = ca.authority.issue(IssueRequest::new(Role::Node, "1")).unwrap().record;
    let path = ca.place("ca").join(INDEX_FILE);
    let mut torn = std::fs::read(&path).unwrap();
    torn.extend_from_slice(br#"{"serial":"40"#);
    std::fs::write(&path, torn).unwrap();
    assert_eq!(ca.authority.list().unwrap(), std::slice::from_ref(&first));
    let second = ca.authority.issue(IssueRequest::new(Role::Node, "2")).unwrap().record;
    assert_eq!(ca.authority.list().unwrap(), [first, second]);
}

#[test]
fn a_line_that_is_damaged_is_named() {
    let ca = TestCa::new("acme");
    std::fs::write(ca.place("ca").join(INDEX_FILE), "{}\n").unwrap();
    let error = ca.authority.list().unwrap_err().to_string();
    assert!(error.contains("issued.jsonl, line 1"), "{error}");
}

#[test]
fn names_that_are_not_well_formed_are_refused_and_nothing_is_issued() {
    let ca = TestCa::new("acme");
    for (role, name) in [(Role::Node, "one"), (Role::Node, "01"), (Role::Agent, "a/b"), (Role::Agent, "")] {
        let error = ca.authority.issue(IssueRequest::new(role, name)).unwrap_err();
        assert!(matches!(error, TlsError::Invalid(_)), "{error:?}");
    }
    for dns in ["", "a b", "*", "spiffe://acme/node/1"] {
        let request = IssueRequest { dns: vec![dns.to_owned()], ..IssueRequest::new(Role::Node, "1") };
        let error = ca.authority.issue(request).unwrap_err();
        assert!(error.to_string().starts_with("dns: "), "{error}");
    }
    assert_eq!(ca.authority.list().unwrap(), []);
}

#[test]
fn a_key_never_shows_in_debug_output() {
    let ca = TestCa::new("acme");
    let issued = ca.authority.issue(IssueRequest::new(Role::Agent, "PC-0001")).unwrap();
    let body = issued.key_pem.expose_text().unwrap().lines().nth(1).unwrap().to_owned();
    assert!(!format!("{issued:?}").contains(&body));
}

#[test]
fn a_revocation_list_that_is_out_of_date_stays_in_force_and_locks_nobody_else_out() {
    let ca = TestCa::new("acme");
    let (mut revoked, issued) = ca.profile(IssueRequest::new(Role::Agent, "PC-0001"));
    let (mut kept, _) = ca.profile(IssueRequest::new(Role::Agent, "PC-0002"));
    let now = unix_now();
    let serial = data_encoding::HEXLOWER.decode(issued.record.serial.as_bytes()).unwrap();
    let list = CertificateRevocationListParams {
        this_update: date(now - 200).unwrap(),
        next_update: date(now - 100).unwrap(),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date(now - 200).unwrap(),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let path = ca.place("stale.pem");
    std::fs::write(&path, list.signed_by(&ca.authority.issuer).unwrap().pem().unwrap()).unwrap();
    (revoked.crl, kept.crl) =
        (RevocationFile::Required(path.clone()), RevocationFile::Required(path.clone()));
    let error = Tls::load(revoked).unwrap_err().to_string();
    assert!(error.ends_with("is revoked"), "{error}");
    Tls::load(kept).unwrap();

    let trust = TrustAnchors::from_pem(&path, &ca.ca_pem()).unwrap();
    let trust = trust.with_revocation_lists(&path, &std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(trust.stale_revocation_lists(now).count(), 1, "it is warned about");
    assert_eq!(trust.stale_revocation_lists(now - 150).count(), 0);

    // The newer of two lists counts, wherever it stands.
    ca.authority.revoke(&Selector::Identity("spiffe://acme/agent/PC-0002".parse().unwrap())).unwrap();
    let new = std::fs::read(ca.authority.revocation_list_path()).unwrap();
    let old = std::fs::read(&path).unwrap();
    let (mut other, _) = ca.profile(IssueRequest::new(Role::Agent, "PC-0002"));
    other.crl = RevocationFile::Required(path.clone());
    for both in [[old.clone(), new.clone()].concat(), [new, old].concat()] {
        std::fs::write(&path, both).unwrap();
        Tls::load(other.clone()).unwrap();
        let known = std::fs::read(&issued_files(&ca, "PC-0002").cert).unwrap();
        let trust = TrustAnchors::from_pem(&path, &ca.ca_pem()).unwrap();
        let trust = trust.with_revocation_lists(&path, &std::fs::read(&path).unwrap()).unwrap();
        let chain = certificates(&path, &known).unwrap();
        assert_eq!(trust.verify(&chain, Side::Client, now).unwrap_err(), CertificateFault::Revoked);
    }
}

/// The files of the first certificate of an agent.
fn issued_files(ca: &TestCa, name: &str) -> TlsPaths {
    let records = ca.authority.list().unwrap();
    let first = records.iter().find(|record| record.identity.name == name).unwrap();
    TlsPaths::profile(&ca.place(&first.serial))
}

#[test]
fn a_certificate_is_not_valid_while_its_ca_is_not() {
    let ca = TestCa::new("acme");
    let now = unix_now();
    let validity = Some(Validity::Between { not_before: now - 10_000, not_after: now + 10_000 });
    let issued = ca.authority.issue(IssueRequest { validity, ..IssueRequest::new(Role::Node, "1") }).unwrap();
    let chain = [rustls::pki_types::CertificateDer::from(der(&issued.cert_pem))];
    let path = Path::new("ca.crt");
    let trust = TrustAnchors::from_pem(path, &ca.ca_pem()).unwrap();
    trust.verify(&chain, Side::Server, now).unwrap();
    let before_its_ca = now - BACKDATE.as_secs() - 1_000;
    let fault = trust.verify(&chain, Side::Server, before_its_ca).unwrap_err();
    assert_eq!(fault, CertificateFault::AuthorityExpired);
}

#[test]
fn two_cas_of_one_name_and_different_keys_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let same_name = || {
        let now = unix_now();
        let mut params = authority_params(&"acme".parse().unwrap(), now, now + 1_000).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "the same");
        params.self_signed(&generate_key().unwrap()).unwrap().pem()
    };
    let path = dir.path().join("bundle.crt");
    std::fs::write(&path, same_name() + &same_name()).unwrap();
    let error = TrustAnchors::from_pem_file(&path).err().unwrap().to_string();
    assert!(error.contains("two CAs with different keys"), "{error}");
}
