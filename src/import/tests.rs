//! Tables of what is read and what is not, and that no bytes at all make a reader fall over.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::escrow::inventory::{Description, ImportedMachine};
use crate::escrow::secrets::bitlocker;

/// The `n`th recovery password.
fn password(n: u16) -> String {
    let secret = bitlocker::from_halves(std::array::from_fn(|group| n.wrapping_mul(8) + group as u16));
    secret.expose_text().unwrap().to_owned()
}

fn read(format: Format, text: impl AsRef<[u8]>) -> Result<Vec<Row>, ImportError> {
    rows(format, io::Cursor::new(text.as_ref().to_vec()))?.collect()
}

/// What each record is, in a form that can be compared.
fn told(rows: &[Row]) -> Vec<String> {
    let text = |row: &Row| match &row.record {
        Record::Key(deposit) => {
            let Deposit { machine, volume, kind, key_id, package, user, pending, .. } = &**deposit;
            assert!(!pending);
            let key_id = key_id.map_or("-".to_owned(), |id| id.to_string());
            let user = user.as_ref().map_or("-".to_owned(), ToString::to_string);
            let package = package.as_ref().map_or(0, |package| package.expose().len());
            format!("{} {machine} {volume} {kind} {key_id} {user} {package}", row.line)
        }
        Record::Machine(imported) => {
            let ImportedMachine { machine, description, users } = &**imported;
            let Description { domain, name, make, model, machine_type, os } = description;
            let users: Vec<String> = users.iter().map(ToString::to_string).collect();
            let texts = [domain, name, make, model, machine_type.as_str(), os].join("|");
            format!("{} {machine} is {texts}|{}", row.line, users.join("+"))
        }
        Record::Other => format!("{} other", row.line),
        Record::Rejected(invalid) => format!("{} rejected {}", row.line, invalid.field),
    };
    rows.iter().map(text).collect()
}

fn secrets(rows: &[Row]) -> Vec<&str> {
    rows.iter()
        .filter_map(|row| match &row.record {
            Record::Key(deposit) => deposit.secret.expose_text(),
            _ => None,
        })
        .collect()
}

mod csv {
    use super::*;

    fn read(text: impl AsRef<[u8]>) -> Result<Vec<Row>, ImportError> {
        super::read(Format::Csv, text)
    }

    fn header_error(text: impl AsRef<[u8]>) -> String {
        match read(text).unwrap_err() {
            error @ ImportError::Header { .. } => error.to_string(),
            error => panic!("{error}"),
        }
    }

    #[test]
    fn a_line_is_a_key_whatever_the_order_of_the_columns() {
        let id = "62b0c0e9-9b6f-4d4f-8f4a-1c2d3e4f5a6b";
        let text = format!(
            "machine,volume,kind,secret\nPC-1,C:,bitlocker-password,{}\n\nLNX-1,/dev/sda2,generic,\"a,\"\"b\"\"\"\n",
            password(1)
        );
        let rows = read(text).unwrap();
        assert_eq!(told(&rows), ["2 PC-1 C: bitlocker-password - - 0", "4 LNX-1 /dev/sda2 generic - - 0"]);
        assert_eq!(secrets(&rows), [password(1).as_str(), "a,\"b\""]);

        let text = format!(
            "\u{feff}Secret;USER;key_id;package;kind;machine;volume\r\n{};CORP\\u1;{{{id}}};AAEC;bitlocker-password;PC-2;C:\r\n{};;;;bitlocker-password; PC-3 ;D:",
            password(2),
            password(3),
        );
        let rows = read(text).unwrap();
        let expected = [
            format!("2 PC-2 C: bitlocker-password {id} CORP\\u1 3"),
            "3 PC-3 D: bitlocker-password - - 0".to_owned(),
        ];
        assert_eq!(told(&rows), expected);
        let text = "kind\tmachine\tvolume\tsecret\ngeneric\tPC-4\tC:\tx;y,z\n";
        assert_eq!(secrets(&read(text).unwrap()), ["x;y,z"]);
    }

    #[test]
    fn a_header_names_known_columns_and_all_that_are_needed() {
        for (header, says) in [
            ("", "line 1: header: a line that names the columns"),
            ("\n\n", "header: a line that names the columns"),
            ("machine,volume,kind\n", "header: a column secret"),
            ("machine,volume,kind,secret,owner\n", "header: column 5 to be one of machine, volume"),
            ("machine,volume,kind,secret,Machine\n", "header: one column machine, not two"),
            ("machine,volume,kind,\"secret\n", "row: value 4 to end with a quotation mark"),
            ("machine,user\n", "header: a column volume"),
            ("machine,name,secret\n", "header: column 2 to be one of machine, volume, kind"),
            ("machine,name,owner\n", "header: column 3 to be one of machine, domain, name"),
            ("name,model\n", "header: a column machine"),
            ("machine,os,OS\n", "header: one column os, not two"),
            ("\nPC-1,C:,generic,hunter2\n", "line 2: header: column 1 to be one of"),
        ] {
            let error = header_error(header);
            assert!(error.contains(says), "{header:?}: {error}");
            assert!(!error.contains("hunter2") && !error.contains("PC-1"), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_line_is_told_with_its_number_and_the_next_one_is_read() {
        let good = password(1);
        let bad = format!("{}9", &good[..good.len() - 1]);
        for (line, field) in [
            (format!("PC-1,C:,bitlocker-password,{bad},"), "secret"),
            (format!("PC 1,C:,bitlocker-password,{good},"), "machine"),
            (format!(",C:,bitlocker-password,{good},"), "machine"),
            (format!("PC-1,,bitlocker-password,{good},"), "volume"),
            (format!("PC-1,C:,bitlocker,{good},"), "kind"),
            (format!("PC-1,C:,bitlocker-password,{good},nobody"), "user"),
            ("PC-1,C:,bitlocker-password,,".to_owned(), "secret"),
            (format!("PC-1,C:,bitlocker-password,{good}"), "row"),
            (format!("PC-1,C:,bitlocker-password,{good},,"), "row"),
            ("PC-1,C:,generic,a\"b,".to_owned(), "row"),
            ("PC-1,C:,generic,\"a\"b,".to_owned(), "row"),
            ("PC-1,C:,generic,\"a,".to_owned(), "row"),
            (format!("PC-1,C:,generic,{},", "x".repeat(2 * LINE_MAX_BYTES)), "row"),
            // A password where it would be shown as the name of a machine, a volume or a user.
            (format!("{good},C:,bitlocker-password,{good},"), "machine"),
            (format!("PC-1,{good},bitlocker-password,{good},"), "volume"),
        ] {
            let text =
                format!("machine,volume,kind,secret,user\n{line}\nPC-2,C:,bitlocker-password,{good},\n");
            let rows = read(text).unwrap();
            let expected = [format!("2 rejected {field}"), "3 PC-2 C: bitlocker-password - - 0".to_owned()];
            assert_eq!(told(&rows), expected, "{}", &line[..line.len().min(200)]);
            let Record::Rejected(invalid) = &rows[0].record else { panic!("{rows:?}") };
            assert!(!invalid.to_string().contains(&good[..20]), "{invalid}");
        }
        let mut text = b"machine,volume,kind,secret\nPC-1,C:,generic,".to_vec();
        text.extend(b"\xff\xfe\nPC-\xff,C:,generic,x\n");
        assert_eq!(told(&read(text).unwrap()), ["2 rejected secret", "3 rejected machine"]);
    }

    #[test]
    fn a_table_without_secrets_is_of_machines() {
        let text = "machine,domain,name,make,model,type,os,users\n\
            PC-1,corp.example,ada-laptop,Contoso,\"X13, 2nd\",portable,Windows 11,CORP\\ada; CORP\\bob ;\n\
            PC-2,,,,,,,\n";
        let rows = read(text).unwrap();
        let first =
            r"2 PC-1 is corp.example|ada-laptop|Contoso|X13, 2nd|portable|Windows 11|CORP\ada+CORP\bob";
        assert_eq!(told(&rows), [first, "3 PC-2 is ||||unknown||"]);
        let text = "Type;Machine;USERS\r\n Server ;SRV-1;\"CORP\\ada;CORP\\bob\"\r\n";
        assert_eq!(told(&read(text).unwrap()), [r"2 SRV-1 is ||||server||CORP\ada+CORP\bob"]);
        assert_eq!(told(&read("machine\nPC-1\n").unwrap()), ["2 PC-1 is ||||unknown||"]);
    }

    #[test]
    fn what_is_wrong_with_a_machine_is_told_with_its_line_and_the_next_one_is_read() {
        let filevault = "AB12-CD34-EF56-GH78-JK90-LM12";
        for (line, field) in [
            (",corp,n,t".to_owned(), "machine"),
            ("PC 1,corp,n,".to_owned(), "machine"),
            ("PC-1,corp,n,toaster".to_owned(), "type"),
            (format!("PC-1,{},n,", "x".repeat(129)), "domain"),
            ("PC-1,corp,a\u{7}b,".to_owned(), "name"),
            ("PC-1,corp,n".to_owned(), "row"),
            (format!("PC-1,corp,{},", password(1)), "name"),
            (format!("{filevault},corp,n,"), "machine"),
            (format!("PC-1,{},n,", "cbdefghi-".repeat(7) + "cbdefghi"), "domain"),
        ] {
            let rows = read(format!("machine,domain,name,type\n{line}\nPC-2,,,\n")).unwrap();
            let expected = [format!("2 rejected {field}"), "3 PC-2 is ||||unknown||".to_owned()];
            assert_eq!(told(&rows), expected, "{line}");
        }
        let users = vec![r"CORP\ada"; 17].join(";");
        let rows = read(format!("machine,users\nPC-1,{users}\nPC-2,nobody\n")).unwrap();
        assert_eq!(told(&rows), ["2 rejected users", "3 rejected user"]);
    }

    #[test]
    fn no_recovery_key_of_any_kind_passes_for_a_name() {
        let luks = "cbdefghi-".repeat(7) + "cbdefghi";
        let filevault = "ab12-CD34-EF56-GH78-JK90-LM12";
        for (machine, volume, field) in [
            (filevault, "C:", "machine"),
            ("PC-1", filevault, "volume"),
            ("PC-1", luks.as_str(), "volume"),
            ("PC-1", &luks.replace('-', ""), "volume"),
            ("PC-1", &password(1).replace('-', ""), "volume"),
        ] {
            let rows = read(format!("machine,volume,kind,secret\n{machine},{volume},generic,x\n")).unwrap();
            assert_eq!(told(&rows), [format!("2 rejected {field}")], "{machine} {volume}");
        }
        // A serial number of 24 letters and digits is a name.
        let rows = read("machine,volume,kind,secret\nAB12CD34EF56GH78JK90LM12,C:,generic,x\n").unwrap();
        assert_eq!(told(&rows), ["2 AB12CD34EF56GH78JK90LM12 C: generic - - 0"]);
    }

    #[test]
    fn another_encoding_is_named_and_not_guessed() {
        let utf16 = |order: fn(u16) -> [u8; 2]| -> Vec<u8> {
            "\u{feff}machine,volume\r\n".encode_utf16().flat_map(order).collect()
        };
        for text in [utf16(u16::to_le_bytes), utf16(u16::to_be_bytes), b"m\0a\0".to_vec()] {
            assert!(matches!(read(&text), Err(ImportError::Encoding)));
        }
    }

    /// A secret that is neither empty nor has a line end in it.
    fn one_line() -> impl Strategy<Value = String> {
        "[a-z\",; \\\\]{0,20}x"
    }

    proptest! {
        #[test]
        fn what_the_csv_crate_writes_is_read_as_it_was_written(
            written in proptest::collection::vec(one_line(), 1..8), always in any::<bool>(),
        ) {
            let style = if always { ::csv::QuoteStyle::Always } else { ::csv::QuoteStyle::Necessary };
            let mut writer = ::csv::WriterBuilder::new().quote_style(style).from_writer(Vec::new());
            writer.write_record(["secret", "machine", "volume", "kind"]).unwrap();
            for secret in &written {
                writer.write_record([secret.as_str(), "PC-1", "C:", "generic"]).unwrap();
            }
            let rows = read(writer.into_inner().unwrap()).unwrap();
            prop_assert_eq!(secrets(&rows), written);
        }

        #[test]
        fn no_bytes_make_it_fall_over(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = read(&bytes);
            let _ = read([b"machine,volume,kind,secret\n".as_slice(), &bytes].concat());
        }
    }
}

mod ldif {
    use super::*;

    const ID: &str = "62b0c0e9-9b6f-4d4f-8f4a-1c2d3e4f5a6b";
    const VOLUME: &str = "0f0e0d0c-0b0a-4908-8706-050403020100";

    fn read(text: impl AsRef<[u8]>) -> Vec<Row> {
        super::read(Format::Ldif, text).unwrap()
    }

    fn base64(bytes: &[u8]) -> String {
        data_encoding::BASE64.encode(bytes)
    }

    fn guid(text: &str) -> String {
        base64(&text.parse::<Uuid>().unwrap().to_bytes_le())
    }

    /// Folded as an export has it.
    fn folded(line: &str, end: &str) -> String {
        let mut parts = line.as_bytes().chunks(76).map(|part| std::str::from_utf8(part).unwrap());
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |text, part| format!("{text}{end} {part}"))
    }

    fn object(n: u16, end: &str) -> String {
        let name =
            format!("CN=2026-01-31T10:15:30-00:00{{{}}},CN=PC-{n},OU=Laptops,DC=corp", ID.to_uppercase());
        let lines = [
            format!("dn: {name}"),
            "changetype: add".to_owned(),
            "objectClass: top".to_owned(),
            "objectClass: msFVE-RecoveryInformation".to_owned(),
            "# a comment".to_owned(),
            "distinguishedName:".to_owned(),
            format!(" {name}"),
            "instanceType: 4".to_owned(),
            format!("msFVE-KeyPackage:: {}", base64(&[7; 300])),
            format!("msFVE-RecoveryGuid:: {}", guid(ID)),
            format!("msFVE-RecoveryPassword: {}", password(n)),
            format!("msFVE-VolumeGuid:: {}", guid(VOLUME)),
        ];
        lines.map(|line| folded(&line, end)).join(end)
    }

    fn expected(line: u64, n: u16) -> String {
        format!("{line} PC-{n} {VOLUME} bitlocker-password {ID} - 300")
    }

    #[test]
    fn a_guid_is_sixteen_bytes_of_which_the_first_eight_are_turned_round() {
        // What `ldifde` writes for {62B0C0E9-9B6F-4D4F-8F4A-1C2D3E4F5A6B}.
        assert_eq!(guid(ID), "6cCwYm+bT02PShwtPk9aaw==");
    }

    #[test]
    fn an_object_is_a_key_of_the_computer_it_lies_under() {
        for end in ["\n", "\r\n"] {
            let two = format!("version: 1{end}{}{end}{end}{end}{}{end}", object(1, end), object(2, end));
            let rows = read(two);
            let second = 3 + 1 + object(1, end).split(end).count() as u64;
            assert_eq!(told(&rows), [expected(2, 1), expected(second, 2)]);
            assert_eq!(secrets(&rows), [password(1), password(2)]);
        }
        // The last line may have no end, a name and a password may be in base64, and a volume may not be named.
        let text = object(1, "\n");
        let name = text.lines().next().unwrap().strip_prefix("dn: ").unwrap().to_owned();
        let text = [
            format!("dn:: {}", base64(unfolded(&text, &name).as_bytes())),
            "objectclass: MSFVE-recoveryinformation".to_owned(),
            format!("MSFVE-RECOVERYPASSWORD:: {}", base64(password(1).as_bytes())),
        ]
        .join("\n");
        let rows = read(text);
        assert_eq!(told(&rows), [format!("1 PC-1 unknown bitlocker-password {ID} - 0")]);
        assert_eq!(secrets(&rows), [password(1)]);
    }

    /// The whole name, of which `begin` is on the first line.
    fn unfolded(text: &str, begin: &str) -> String {
        let rest = text.lines().skip(1).take_while(|line| line.starts_with(' '));
        rest.fold(begin.to_owned(), |name, line| name + &line[1..])
    }

    #[test]
    fn other_objects_are_passed_over_whatever_they_hold() {
        let computer = format!(
            "dn: CN=ada,OU=People,DC=corp\nobjectClass: user\nuserCertificate:: {}\nphoto:< file:///x\n",
            "x".repeat(3 * LINE_MAX_BYTES)
        );
        let text = format!("{computer}\n{}\n\n{computer}", object(1, "\n"));
        let rows = read(text);
        assert_eq!(told(&rows)[..2], ["1 other".to_owned(), expected(6, 1)]);
        assert_eq!(rows.len(), 3);
        assert_eq!(read("").len() + read("\n\n# nothing\n# here\n").len() + read("version: 1\n").len(), 0);
    }

    #[test]
    fn a_computer_is_a_machine_named_as_its_keys_are_and_an_account_of_a_service_is_none() {
        let computer = |classes: &[&str], more: &str| {
            let classes: String = classes.iter().map(|class| format!("objectClass: {class}\n")).collect();
            format!("dn: CN=PC-1,OU=Laptops,DC=corp,DC=example\n{classes}{more}\n")
        };
        let classes = ["top", "person", "organizationalPerson", "user", "computer"];
        let more = format!(
            "cn: PC-1\nsAMAccountName: PC-1$\ndNSHostName: pc-1.corp.example\noperatingSystem: Windows 11 Pro\n\
             operatingSystemVersion: 10.0 (26100)\nmsTPM-OwnerInformation: c2VjcmV0\nuserCertificate:: {}\n",
            "x".repeat(3 * LINE_MAX_BYTES)
        );
        let text = format!("{}\n{}", computer(&classes, &more), object(1, "\n"));
        let rows = read(&text);
        let os = "Windows 11 Pro 10.0 (26100)";
        let first = format!("1 PC-1 is corp.example|pc-1.corp.example|||unknown|{os}|");
        assert_eq!(told(&rows), [first, expected(rows[1].line, 1)]);
        assert_eq!(told(&read(computer(&classes, ""))), ["1 PC-1 is corp.example||||unknown||"]);
        for account in ["msDS-ManagedServiceAccount", "msDS-GroupManagedServiceAccount"] {
            assert_eq!(told(&read(computer(&[&classes[..], &[account]].concat(), ""))), ["1 other"]);
        }
        let named = computer(&classes, "").replace("CN=PC-1", r"CN=a\, b");
        assert_eq!(told(&read(named)), ["1 rejected machine"]);
        let long = computer(&classes, &format!("operatingSystem: {}\n", "x".repeat(129)));
        assert_eq!(told(&read(long)), ["1 rejected os"]);
        assert_eq!(told(&read("dn: OU=x\nobjectClass: computer\n")), ["1 rejected dn"]);
    }

    #[test]
    fn what_is_wrong_with_an_object_is_told_and_the_next_one_is_read() {
        let changed = |from: &str, to: &str| {
            let text = object(1, "\n");
            assert!(text.contains(from), "{from}");
            text.replacen(from, to, 1)
        };
        let other = guid("00000000-0000-4000-8000-000000000000");
        let secret = password(1);
        for (text, field) in [
            (changed("changetype: add", "changetype: modify"), "ldif"),
            (changed("changetype: add", "changetype: delete"), "ldif"),
            (changed("changetype: add", "control: 1.2.3 true"), "ldif"),
            (changed("instanceType: 4", "what is this"), "ldif"),
            (changed("CN=2026", "OU=2026"), "dn"),
            (changed("dn: ", "name: "), "dn"),
            (changed("dn: ", "dn:: "), "dn"),
            (changed("dn: ", "dn:< "), "dn"),
            (changed(&guid(ID), &other), "msFVE-RecoveryGuid"),
            (changed(&guid(ID), "AAEC"), "msFVE-RecoveryGuid"),
            (changed(&guid(VOLUME), "not base64"), "msFVE-VolumeGuid"),
            (changed("msFVE-RecoveryPassword: 0", "msFVE-RecoveryPassword: 1"), "secret"),
            (changed("msFVE-RecoveryPassword: ", "x-other: "), "msFVE-RecoveryPassword"),
            (
                changed("msFVE-RecoveryPassword: ", "msFVE-RecoveryPassword: x\nmsFVE-RecoveryPassword: "),
                "msFVE-RecoveryPassword",
            ),
            (
                changed("msFVE-RecoveryPassword: ", "msFVE-RecoveryPassword:< file:///"),
                "msFVE-RecoveryPassword",
            ),
            (
                changed("msFVE-KeyPackage:: ", &format!("msFVE-KeyPackage:: {}", "A".repeat(LINE_MAX_BYTES))),
                "msFVE-KeyPackage",
            ),
            (
                changed(
                    "msFVE-KeyPackage:: ",
                    &format!("x: 1\nmsFVE-KeyPackage;binary:: {}\nx:: ", "AAAA".repeat(22_000)),
                ),
                "package",
            ),
            (format!(" goes on with nothing: {}", object(1, "\n")), "ldif"),
        ] {
            let rows = read(format!("{text}\n\n{}", object(2, "\n")));
            let shown = told(&rows);
            assert_eq!(shown[0], format!("1 rejected {field}"), "{}", &text[..200]);
            assert_eq!(shown[1], expected(text.lines().count() as u64 + 2, 2), "{field}");
            let Record::Rejected(invalid) = &rows[0].record else { panic!("{rows:?}") };
            assert!(!invalid.to_string().contains(&secret[..12]), "{invalid}");
        }
    }

    #[test]
    fn an_export_in_another_encoding_is_named() {
        let text: Vec<u8> = "\u{feff}dn: CN=x\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(matches!(super::read(Format::Ldif, text), Err(ImportError::Encoding)));
    }

    /// Lines as exports have them, in any order, some of them spoilt.
    fn line() -> impl Strategy<Value = String> {
        let own: Vec<String> = object(1, "\n").lines().map(str::to_owned).collect();
        prop_oneof![
            6 => proptest::sample::select(own),
            2 => Just(String::new()),
            1 => "[ -~]{0,40}",
            1 => " [ -~]{0,40}",
        ]
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fall_over(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = super::read(Format::Ldif, &bytes);
        }

        #[test]
        fn whatever_the_lines_are_no_secret_is_told_and_lines_are_counted(
            lines in proptest::collection::vec(line(), 0..60), crlf in any::<bool>(),
        ) {
            let text = lines.join(if crlf { "\r\n" } else { "\n" });
            let mut last = 0;
            for row in read(&text) {
                prop_assert!(row.line > last && row.line <= lines.len() as u64);
                last = row.line;
                if let Record::Rejected(invalid) = &row.record {
                    prop_assert!(!invalid.to_string().contains(&password(1)[..12]));
                }
                if let Record::Key(deposit) = &row.record {
                    prop_assert_eq!(deposit.machine.as_str(), "PC-1");
                }
            }
        }

        #[test]
        fn how_a_file_comes_in_pieces_changes_nothing(size in 1_usize..200, folding in any::<bool>()) {
            struct Pieces(Vec<u8>, usize, usize);
            impl Read for Pieces {
                fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                    let rest = &self.0[self.1..];
                    let length = rest.len().min(self.2).min(buffer.len());
                    buffer[..length].copy_from_slice(&rest[..length]);
                    self.1 += length;
                    Ok(length)
                }
            }
            let end = if folding { "\r\n" } else { "\n" };
            let text = format!("{}{end}{end}{}{end}", object(1, end), object(2, end));
            let pieces: Result<Vec<Row>, _> =
                rows(Format::Ldif, Pieces(text.clone().into_bytes(), 0, size)).unwrap().collect();
            prop_assert_eq!(told(&pieces.unwrap()), told(&read(&text)));
        }
    }
}
