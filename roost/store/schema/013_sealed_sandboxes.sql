-- From here on sandboxes, builds of templates and tokens of volumes are sealed too (`sealed.ALL`). The note is that of 012.
INSERT INTO settings (name, value)
    SELECT 'plain text', 'true'
    WHERE NOT EXISTS (SELECT 1 FROM settings WHERE name = 'plain text')
    AND (EXISTS (SELECT 1 FROM settings) OR EXISTS (SELECT 1 FROM sandboxes) OR EXISTS (SELECT 1 FROM sandbox_ends)
        OR EXISTS (SELECT 1 FROM template_builds) OR EXISTS (SELECT 1 FROM volumes));
