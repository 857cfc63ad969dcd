CREATE TABLE accounts (
    id bigint PRIMARY KEY,
    email varchar(120) NOT NULL UNIQUE,
    full_name varchar(80) NOT NULL,
    plan varchar(16) NOT NULL,
    joined_at timestamp NOT NULL,  -- in UTC
    newsletter boolean NOT NULL,
    balance numeric(12, 2),
    public_id uuid
);
