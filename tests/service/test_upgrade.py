from __future__ import annotations

from .container import Box
from .site import Site

OLDER = """
dpkg -P se3-uploader
rm -rf /tmp/older; dpkg-deb -R /dist/se3-uploader_*_amd64.deb /tmp/older
sed -i 's/^Version: .*/Version: 0.0.1/' /tmp/older/DEBIAN/control
for settings in etc/se3-uploader usr/share/doc/se3-uploader/examples; do
    sed -i 's/^# .*check.*/# A comment of an older version./' /tmp/older/$settings/uploader.yaml
done
dpkg-deb -Znone --build /tmp/older /tmp/se3-uploader_0.0.1_amd64.deb
dpkg -i /tmp/se3-uploader_0.0.1_amd64.deb
"""
NEWER = "dpkg -i --force-confdef --force-confold /dist/se3-uploader_*_amd64.deb"


def test_an_upgrade_keeps_events_and_settings(bare: Box) -> None:
    """Events pending under the older version are delivered by the newer one, each once.

    The service is restarted by the upgrade and the edited configuration stays.
    """
    bare.sh(OLDER)
    with Site(bare) as site:
        site.answers(503)
        site.events(30)
        site.start()
        process = bare.show("MainPID")
        bare.sh(NEWER)
        assert bare.show("ActiveState") == "active"
        assert bare.show("MainPID") != process
        site.answers(200)
        site.arrive(30)
        assert len(site.accepted()) == 30
        assert "TEST" in bare.sh("cat /etc/se3-uploader/uploader.yaml")


def test_a_service_that_was_stopped_stays_stopped(bare: Box) -> None:
    """An upgrade neither starts nor enables what the administrator switched off."""
    bare.sh(OLDER)
    with Site(bare) as site:
        site.events(1)
        bare.sh("systemctl disable -q se3-uploader")
        bare.sh(NEWER)
        assert bare.show("ActiveState") == "inactive"
        assert bare.run("systemctl", "is-enabled", "se3-uploader", check=False) == "disabled\n"
        bare.sh("systemctl enable -q se3-uploader")


def test_removal_keeps_the_outbox_and_purge_does_not(bare: Box) -> None:
    """After remove and install again the events arrive; purge leaves nothing behind."""
    bare.sh(OLDER)
    with Site(bare) as site:
        site.answers(503)
        site.events(10)
        site.start()
        bare.sh("dpkg -r se3-uploader")
        bare.sh("test -e /var/lib/se3-uploader/outbox.db")
        bare.sh("test ! -e /opt/se3-uploader")
        bare.sh(f"{NEWER}; systemctl start se3-uploader")
        site.answers(200)
        site.arrive(10)
        bare.sh("dpkg -P se3-uploader")
        for folder in ("/var/lib", "/etc", "/opt"):
            bare.sh(f"test ! -e {folder}/se3-uploader")
